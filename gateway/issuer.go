package gateway

import (
	"context"

	"google.golang.org/protobuf/proto"

	"transom/gateway/acme"
	configv1 "transom/proto/transom/config/v1"
)

// issuing is an issuer of certificates, and what ends it. Listeners and configurations that want the same share it.
type issuing struct {
	issuer *acme.Issuer
	// stop ends its Run; nil before.
	stop context.CancelFunc
}

// issuer gives the issuer that a listener asks for; nil, with a fault, if there can't be one.
func (b *builder) issuer(path string, a *configv1.Acme) *acme.Issuer {
	text, err := proto.MarshalOptions{Deterministic: true}.Marshal(a)
	if err != nil {
		b.faultOf(path, err)
		return nil
	}
	if b.issuers == nil {
		b.issuers = map[string]*issuing{}
	}
	key := string(text)
	for _, known := range []map[string]*issuing{b.issuers, b.issuing} {
		if s := known[key]; s != nil {
			b.issuers[key] = s
			return s.issuer
		}
	}
	issuer, err := acme.New(acme.Config{
		Names: a.GetNames(), Directory: a.GetDirectory(), CAFile: a.GetCa(), Email: a.GetEmail(), Storage: a.GetStorage(),
		KeyID: a.GetExternalAccount().GetKeyId(), MACKey: a.GetExternalAccount().GetHmacKey(),
		NoHTTP: a.GetChallenge() == configv1.Acme_CHALLENGE_TLS, NoALPN: a.GetChallenge() == configv1.Acme_CHALLENGE_HTTP,
	}, b.log)
	if err == nil && !b.dry {
		err = issuer.Prepare()
	}
	if err != nil {
		b.faultOf(path, err)
		return nil
	}
	b.issuers[key] = &issuing{issuer: issuer}
	return issuer
}

func issuersOf(all map[string]*issuing) []*acme.Issuer {
	var list []*acme.Issuer
	for _, s := range all {
		list = append(list, s.issuer)
	}
	return list
}

// keyAuthorization answers an authority's http-01 challenge for any of the issuers.
func keyAuthorization(all map[string]*issuing) func(token string) (string, bool) {
	if len(all) == 0 {
		return nil
	}
	return func(token string) (string, bool) {
		for _, s := range all {
			if auth, ok := s.issuer.KeyAuthorization(token); ok {
				return auth, true
			}
		}
		return "", false
	}
}
