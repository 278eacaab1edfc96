package gateway

import (
	"transom/descriptors"
	"transom/policy/validate"
	"transom/rpc"
)

// shaping is what a builder keeps for the policies of this file.
type shaping struct {
	validator *validate.Compiler
}

// validate is the middleware that checks messages by the rules of their descriptors; nil if there are none.
func (b *builder) validate(m *descriptors.Method, eff Effective) rpc.Middleware {
	if !eff.Policy.GetValidate() || m.Desc == nil {
		return nil
	}
	if b.validator == nil {
		b.validator = validate.NewCompiler()
	}
	mw, err := b.validator.Middleware(m)
	if err != nil {
		b.faultOf(eff.path("validate"), err)
	}
	return mw
}
