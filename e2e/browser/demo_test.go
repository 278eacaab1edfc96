package browser

import (
	"context"
	"io"
	"regexp"
	"testing"

	"transom/cmd/transom/demo"
)

// The demo's page: a REST call, a stream of events, and the chat by our client, as a visitor would click them.
func TestDemoPage(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := demo.Run(ctx, demo.Config{Plain: "127.0.0.1:0", TLS: "127.0.0.1:0", Admin: "127.0.0.1:0", Backends: []string{"127.0.0.1:0"}, Out: in})
		_ = in.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	guide := make([]byte, 64<<10) // it comes in one write
	n, err := out.Read(guide)
	if err != nil {
		t.Fatal(err)
	}
	url := regexp.MustCompile(`http://localhost:\d+/demo`).FindString(string(guide[:n]))
	page := open(t, &world{}, url)
	const click = `
		const until = (text, id) => new Promise((resolve) => {
			const node = document.getElementById(id);
			const check = () => node.textContent.includes(text) && (observer.disconnect(), resolve(node.textContent));
			const observer = new MutationObserver(check);
			observer.observe(node, { childList: true, characterData: true, subtree: true });
			check();
		});
		const chat = document.getElementById("chat");
		const tell = (text) => { chat.text.value = text; chat.requestSubmit(); };
	`
	var got string
	eval(page, t, click+`
		document.getElementById("rest").requestSubmit();
		await until("customers/3/accounts/1", "rest-answer");
		document.getElementById("stream").interval.value = "0.1s";
		document.getElementById("stream").requestSubmit();
		return await until("open, 2 messages", "stream-status");
	`, nil, &got)
	eval(page, t, click+`
		tell("hi");
		await until('You said "hi".', "chat-answer");
		tell("bye");
		return await until("OK", "chat-status");
	`, nil, &got)
	eval(page, t, click+`
		tell("hi");
		await until("open", "chat-status");
		tell("fail");
		return await until("gone home", "chat-status");
	`, nil, &got)
	if got != "UNAVAILABLE: the help desk has gone home" {
		t.Errorf("the failed chat ended with %q", got)
	}
}
