package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/weir-lb/weir/controlplane/status"
)

// logTo returns a log that also posts its errors on the board.
func logTo(log *zap.Logger, board *status.Board) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewTee(core, boardCore{LevelEnabler: zapcore.ErrorLevel, board: board})
	}))
}

// boardCore posts log entries on a board.
type boardCore struct {
	zapcore.LevelEnabler
	board *status.Board
	with  []zapcore.Field
}

// With returns a core whose entries have more fields.
func (c boardCore) With(fields []zapcore.Field) zapcore.Core {
	c.with = append(c.with[:len(c.with):len(c.with)], fields...)
	return c
}

// Check adds the core to those that write an entry.
func (c boardCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

// Write posts an entry: "write services: no space left on device (failures 3)".
func (c boardCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	message, details := entry.Message, zapcore.NewMapObjectEncoder()
	for _, field := range append(c.with[:len(c.with):len(c.with)], fields...) {
		if err, is := field.Interface.(error); is && field.Type == zapcore.ErrorType {
			message = fmt.Sprintf("%s: %v", message, err)
			continue
		}
		field.AddTo(details)
	}
	words := make([]string, 0, len(details.Fields))
	for key, value := range details.Fields {
		words = append(words, fmt.Sprintf("%s %v", key, value))
	}
	slices.Sort(words)
	if len(words) > 0 {
		message = fmt.Sprintf("%s (%s)", message, strings.Join(words, ", "))
	}
	c.board.Failed(errors.New(message))
	return nil
}

// Sync has nothing to do.
func (c boardCore) Sync() error { return nil }
