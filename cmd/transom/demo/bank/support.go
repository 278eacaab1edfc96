package bank

import (
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	bankv1 "transom/proto/bank/v1"
)

// support implements bank.v1.Support.
type support struct {
	bankv1.UnimplementedSupportServer
}

// Chat implements bank.v1.Support. Each message is answered with `You said "…".`, "bye" is answered and ends the chat, and
// "fail" ends it with UNAVAILABLE.
func (*support) Chat(stream grpc.BidiStreamingServer[bankv1.ChatMessage, bankv1.ChatMessage]) error {
	if err := stream.SendHeader(nil); err != nil { // tells the client that somebody listens
		return err
	}
	room := ""
	for n := int64(1); ; n++ {
		msg, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if room == "" {
			room = msg.GetRoom()
		}
		answer := `You said "` + msg.GetText() + `".`
		switch strings.ToLower(strings.TrimSpace(msg.GetText())) {
		case "":
			answer = "Hello! How can I help?"
		case "bye":
			answer = "Goodbye."
		case "fail":
			return status.Error(codes.Unavailable, "the help desk has gone home")
		}
		if err := stream.Send(&bankv1.ChatMessage{Room: room, Author: "help desk", Text: answer, Time: timestamppb.Now(), Sequence: n}); err != nil {
			return err
		}
		if answer == "Goodbye." {
			return nil
		}
	}
}
