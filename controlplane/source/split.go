package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
)

// document is one of the documents in a file.
type document struct {
	number int // from 1
	line   int // of the file, where its content begins; from 1
	base   int // of the file, where its text begins
	text   []byte
	json   bool
}

// split takes a file apart. Documents without content are left out and not counted.
func split(name string, content []byte) []document {
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	if strings.HasSuffix(name, ".json") {
		return splitJSON(content)
	}
	return splitYAML(content)
}

// splitYAML cuts at the lines that YAML says begin or end a document, wherever they are. Each document
// keeps its lines, so that a line number in an error can be told in terms of the file.
func splitYAML(content []byte) []document {
	var documents []document
	current := document{base: 1}
	flush := func(next int) {
		if index, found := contentLine(current.text); found {
			current.number, current.line = len(documents)+1, current.base+index
			documents = append(documents, current)
		}
		current = document{base: next}
	}
	line := 0
	for text := range bytes.Lines(content) {
		line++
		switch {
		case marker(text, "---"):
			flush(line)
			text = append([]byte("   "), text[3:]...) // what follows on the line belongs to the document
		case marker(text, "..."):
			flush(line + 1)
			continue
		case text[0] == '%':
			if _, begun := contentLine(current.text); !begun {
				text = []byte("\n") // a directive
			}
		}
		current.text = append(current.text, text...)
	}
	flush(line)
	return documents
}

// marker tells whether a line is a document marker.
func marker(line []byte, mark string) bool {
	if !bytes.HasPrefix(line, []byte(mark)) {
		return false
	}
	rest := line[len(mark):]
	return len(rest) == 0 || bytes.IndexByte([]byte(" \t\r\n"), rest[0]) >= 0
}

// contentLine returns the index of the first line of a text that is more than space and comment, or false
// if there is none.
func contentLine(text []byte) (index int, found bool) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			return index, true
		}
		index++
	}
	return index, false
}

// splitJSON takes apart documents that follow one another. What comes after an error is one document with
// it.
func splitJSON(content []byte) []document {
	var documents []document
	decoder := json.NewDecoder(bytes.NewReader(content))
	for {
		start := decoder.InputOffset()
		var text json.RawMessage
		err := decoder.Decode(&text)
		if errors.Is(err, io.EOF) {
			return documents
		}
		if err != nil {
			text = content[start:]
		}
		start += int64(len(content[start:]) - len(bytes.TrimLeft(content[start:], " \t\r\n")))
		documents = append(documents, document{
			number: len(documents) + 1,
			line:   1 + bytes.Count(content[:start], []byte("\n")),
			text:   text,
			json:   true,
		})
		if err != nil {
			return documents
		}
	}
}
