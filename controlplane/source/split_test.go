package source

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	tests := []struct {
		what, name, content string
		want                []string // "number:line text"
	}{
		{"nothing", "a.yaml", "", nil},
		{"comments only", "a.yaml", "# one\n\n---\n# two\n---\n", nil},
		{"one", "a.yaml", "a: 1\n", []string{"1:1 a: 1"}},
		{"a marker first", "a.yaml", "---\na: 1\n", []string{"1:2 a: 1"}},
		{"two, the first one empty", "a.yaml", "# head\n---\na: 1\n---\nb: 2\n", []string{"1:3 a: 1", "2:5 b: 2"}},
		{"no newline at the end", "a.yaml", "a: 1\n---\nb: 2", []string{"1:1 a: 1", "2:3 b: 2"}},
		{"carriage returns", "a.yaml", "a: 1\r\n---\r\nb: 2\r\n", []string{"1:1 a: 1", "2:3 b: 2"}},
		{"a comment and content on the marker", "a.yaml", "--- # x\na: 1\n--- {b: 2}\n", []string{"1:2 # x\na: 1", "2:3 {b: 2}"}},
		{"more dashes are no marker", "a.yaml", "a: |\n  ---\n----: 1\n", []string{"1:1 a: |\n  ---\n----: 1"}},
		{"an end marker", "a.yaml", "a: 1\n...\nb: 2\n", []string{"1:1 a: 1", "2:3 b: 2"}},
		{"a directive", "a.yaml", "%YAML 1.1\n---\na: 1\n", []string{"1:3 a: 1"}},
		{"a byte order mark", "a.yaml", "\xef\xbb\xbf---\na: 1\n", []string{"1:2 a: 1"}},
		{"JSON, two", "a.json", "{\"a\": 1}\n\n{\"b\": 2}\n", []string{"1:1 {\"a\": 1}", "2:3 {\"b\": 2}"}},
		{"JSON, cut off", "a.json", "{\"a\": 1}\n{\"b\": ", []string{"1:1 {\"a\": 1}", "2:2 {\"b\":"}},
		{"JSON, nothing", "a.json", " \n", nil},
	}
	for _, test := range tests {
		var got []string
		for _, d := range split(test.name, []byte(test.content)) {
			text := strings.ReplaceAll(strings.TrimSpace(string(d.text)), "\r", "")
			got = append(got, fmt.Sprintf("%d:%d %s", d.number, d.line, text))
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.what, diff)
		}
	}
}
