package acme

import (
	"context"
	"crypto"
	"errors"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// account is the one to order by, registered with the authority if it is not yet. One at gone is registered anew.
func (i *Issuer) account(ctx context.Context, gone string) (acme.Account, error) {
	i.registering.Lock()
	defer i.registering.Unlock()
	unlock, err := i.store.lock(ctx, "account")
	if err != nil {
		return acme.Account{}, err
	}
	defer unlock()
	a, err := i.store.account()
	if err != nil || a.Location != "" && a.Location != gone {
		return a, err
	}
	a = acme.Account{PrivateKey: a.PrivateKey, TermsOfServiceAgreed: true}
	if i.cfg.Email != "" {
		a.Contact = []string{"mailto:" + i.cfg.Email}
	}
	if i.cfg.KeyID != "" {
		if err := a.SetExternalAccountBinding(ctx, i.client.Client, acme.EAB{KeyID: i.cfg.KeyID, MACKey: i.cfg.MACKey}); err != nil {
			return a, err
		}
	}
	if a, err = i.client.NewAccount(ctx, a); err != nil {
		return a, err
	}
	return a, i.store.setAccount(a)
}

// order gets a certificate chain in PEM, the leaf first, and its key.
func (i *Issuer) order(ctx context.Context, account acme.Account, c *certificate) (chain []byte, key crypto.Signer, err error) {
	if key, err = newKey(); err != nil {
		return nil, nil, err
	}
	csr, err := acmez.NewCSR(key, []string{c.name})
	if err != nil {
		return nil, nil, err
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, nil, err
	}
	if pair := c.pair.Load(); pair != nil && c.renewal.HasWindow() {
		params.Replaces = pair.Leaf
	}
	chains, err := i.client.ObtainCertificate(ctx, params)
	if err != nil {
		return nil, nil, err
	}
	if len(chains) == 0 {
		return nil, nil, errors.New("the authority sent no certificate")
	}
	return chains[0].ChainPEM, key, nil
}
