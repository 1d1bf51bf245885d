package kubeproxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// metricsAddress is where kube-proxy tells its mode, unless its configuration has another.
	metricsAddress = "127.0.0.1:10249"
	// answerLimit is how long that may take.
	answerLimit = time.Second
)

// running returns what shows that a kube-proxy runs in this network namespace; "" where nothing does.
func running() (sign string, err error) {
	if mode := answeredMode(); slices.Contains([]string{"iptables", "ipvs", "nftables"}, mode) {
		return fmt.Sprintf("http://%s/proxyMode says %s", metricsAddress, mode), nil
	}
	return findProcess()
}

// findProcess looks for its process: in a container, there are others to be seen with hostPID alone.
func findProcess() (sign string, err error) {
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return "", err
	}
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return "", err
	}
	for _, path := range names {
		content, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(content)) != tableName {
			continue // it may have ended
		}
		dir := filepath.Dir(path)
		if namespace, err := os.Readlink(filepath.Join(dir, "ns", "net")); err == nil && namespace == here {
			return "pid " + filepath.Base(dir), nil
		}
	}
	return "", nil
}

// answeredMode asks who answers at kube-proxy's port; "" where nobody does.
func answeredMode() string {
	connection, err := net.DialTimeout("tcp", metricsAddress, answerLimit)
	if err != nil {
		return ""
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(answerLimit)); err != nil {
		return ""
	}
	if _, err := io.WriteString(connection, "GET /proxyMode HTTP/1.0\r\n\r\n"); err != nil {
		return ""
	}
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(body))
}
