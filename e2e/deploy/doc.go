// Package deploy tests what transom is operated with: the files below deploy/ and the packages that `make release` makes.
// It is a module of its own, for Prometheus's parser, Kubernetes's types and the reader of OCI images are large.
package deploy
