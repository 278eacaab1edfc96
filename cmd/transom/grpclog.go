package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"google.golang.org/grpc/grpclog"
)

// routeGRPCLog makes grpc-go's own log part of ours. What transom is responsible for it logs itself: grpc-go's errors are
// warnings here, the rest is for debugging.
func routeGRPCLog(log *slog.Logger) { grpclog.SetLoggerV2(grpcLog{log}) }

type grpcLog struct{ log *slog.Logger }

var _ grpclog.LoggerV2 = grpcLog{}

func (l grpcLog) write(level slog.Level, text string) {
	if strings.HasPrefix(text, "[health_service]") {
		level = slog.LevelDebug // that a server has no health service is no fault
	}
	l.log.LogAttrs(context.Background(), level, "grpc", slog.String("text", strings.TrimSuffix(text, "\n")))
}

func (l grpcLog) Info(...any)                 {}
func (l grpcLog) Infoln(...any)               {}
func (l grpcLog) Infof(string, ...any)        {}
func (l grpcLog) Warning(a ...any)            { l.write(slog.LevelDebug, fmt.Sprint(a...)) }
func (l grpcLog) Warningln(a ...any)          { l.write(slog.LevelDebug, fmt.Sprintln(a...)) }
func (l grpcLog) Warningf(f string, a ...any) { l.write(slog.LevelDebug, fmt.Sprintf(f, a...)) }
func (l grpcLog) Error(a ...any)              { l.write(slog.LevelWarn, fmt.Sprint(a...)) }
func (l grpcLog) Errorln(a ...any)            { l.write(slog.LevelWarn, fmt.Sprintln(a...)) }
func (l grpcLog) Errorf(f string, a ...any)   { l.write(slog.LevelWarn, fmt.Sprintf(f, a...)) }
func (l grpcLog) Fatal(a ...any)              { l.fatal(fmt.Sprint(a...)) }
func (l grpcLog) Fatalln(a ...any)            { l.fatal(fmt.Sprintln(a...)) }
func (l grpcLog) Fatalf(f string, a ...any)   { l.fatal(fmt.Sprintf(f, a...)) }
func (l grpcLog) V(level int) bool            { return level <= 0 }

// fatal does not return: grpc-go counts on it.
func (l grpcLog) fatal(text string) {
	l.write(slog.LevelError, text)
	os.Exit(1)
}
