// Package attack runs transom under the attacks that an edge has to stand: floods of HTTP/2 frames, slow clients of every
// protocol, bombs of every encoding, headers out of all proportion, replays. Each attack has a ceiling for the memory that
// transom may take, and a well-behaved client that must not notice more than that the machine is busy.
package attack
