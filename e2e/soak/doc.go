// Package soak runs transom for a while under a mixed load of all protocols while everything around it fails: backends are
// killed and restarted, the network stands still and is cut, configuration, descriptors and certificates are replaced, and
// clients vanish and stall. `make soak` runs it for SOAK_DURATION, `make e2e` for less than two minutes.
package soak
