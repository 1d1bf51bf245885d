package kubeproxy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// chainsPerBatch is how many chains are removed at once.
const chainsPerBatch = 500

// Result is what Remove has done.
type Result struct {
	Removed []string // what
	Left    []string // what, and why
}

// Remove removes kube-proxy's rules. Connections that it has translated go on.
func Remove() (Result, error) {
	var result Result
	if sign, err := running(); err != nil || sign != "" {
		return result, errors.Join(err, fmt.Errorf("kube-proxy is running (%s), and would write its rules again: stop it first", sign))
	}
	c := dial()
	found, err := list(c)
	if err != nil {
		return result, err
	}
	if err := keepTranslated(c, found); err != nil {
		return result, err
	}
	if result.Removed, err = removeTables(c, found.own); err != nil {
		return result, err
	}
	users, err := usersOf(c, found.chains)
	if err != nil {
		return result, err
	}
	result.Left = explainUsers(users)
	chains, err := removeChains(c, found.chains, func(chain string) bool {
		forOthers := len(users) > 0 && (chain == markChain || chain == maskChain)
		return ours(chain) && chain != forwardChain && !forOthers
	})
	result.Removed = append(result.Removed, chains...)
	if err != nil {
		return result, err
	}
	// Some may have begun since.
	if err := keepTranslated(c, found); err != nil {
		return result, err
	}
	return result, result.release()
}

// keepTranslated sees to it that translated connections go on, where kube-proxy has made any.
func keepTranslated(c *nftables.Conn, found listing) error {
	legacy, err := legacyTables()
	if err != nil {
		return err
	}
	if len(found.own)+len(legacy) == 0 && !slices.ContainsFunc(found.chains, func(chain *nftables.Chain) bool { return ours(chain.Name) }) {
		return nil
	}
	connections, err := translated()
	if err != nil {
		return err
	}
	return keep(c, connections)
}

// release removes also what is there for connections, if there are none, and notes what is left.
func (r *Result) release() error {
	count, chains, err := Release()
	if err != nil {
		return err
	}
	r.Removed = append(r.Removed, chains...)
	if count > 0 {
		r.Left = append(r.Left, fmt.Sprintf("table inet %s and chains %s: %d connections that kube-proxy has translated need them; the agent, or weir cleanup, removes them when these have ended",
			keepName, forwardChain, count))
	}
	rest, err := Find()
	r.Left = append(r.Left, explainRest(rest)...)
	return err
}

// removeTables removes whole tables.
func removeTables(c *nftables.Conn, tables []*nftables.Table) (removed []string, err error) {
	for _, table := range tables {
		c.DelTable(table)
		removed = append(removed, "table "+nameOf(table))
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("remove the tables of kube-proxy: %w", err)
	}
	return removed, nil
}

// removeChains removes chains of iptables' tables, and first the rules of the built-in ones that lead to them.
func removeChains(c *nftables.Conn, chains []*nftables.Chain, which func(chain string) bool) (removed []string, err error) {
	jumps, err := jumpsTo(c, chains, func(from *nftables.Chain, to string) bool { return from.Hooknum != nil && which(to) })
	if err != nil {
		return nil, err
	}
	for _, jump := range jumps {
		if err := c.DelRule(jump); err != nil {
			return nil, err
		}
	}
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("remove the jumps to kube-proxy's chains: %w", err)
	}
	counts := map[string]int{}
	var gone []*nftables.Chain
	for _, chain := range chains {
		if which(chain.Name) {
			gone = append(gone, chain)
			counts[nameOf(chain.Table)]++
		}
	}
	// They lead to each other: all are empty before the first goes.
	for _, remove := range []func(*nftables.Chain){c.FlushChain, c.DelChain} {
		for some := range slices.Chunk(gone, chainsPerBatch) {
			for _, chain := range some {
				remove(chain)
			}
			if err := c.Flush(); err != nil {
				return nil, fmt.Errorf("remove chains of kube-proxy: %w", err)
			}
		}
	}
	for _, table := range slices.Sorted(maps.Keys(counts)) {
		removed = append(removed, fmt.Sprintf("%d chains of table %s", counts[table], table))
	}
	return removed, nil
}

// jumpsTo lists rules of chains that are not kube-proxy's and lead to another chain.
func jumpsTo(c *nftables.Conn, chains []*nftables.Chain, which func(from *nftables.Chain, to string) bool) ([]*nftables.Rule, error) {
	var jumps []*nftables.Rule
	for _, chain := range chains {
		if ours(chain.Name) {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("read chain %s of table %s: %w", chain.Name, nameOf(chain.Table), err)
		}
		for _, rule := range rules {
			if to := targetOf(rule); to != "" && which(chain, to) {
				rule.Table, rule.Chain = chain.Table, chain
				jumps = append(jumps, rule)
			}
		}
	}
	return jumps, nil
}

// targetOf returns the chain that a rule leads to, if it does.
func targetOf(rule *nftables.Rule) string {
	for _, e := range rule.Exprs {
		if verdict, ok := e.(*expr.Verdict); ok {
			return verdict.Chain
		}
	}
	return ""
}

// usersOf lists the chains of others that have kube-proxy mark packets which are to be masqueraded.
func usersOf(c *nftables.Conn, chains []*nftables.Chain) ([]string, error) {
	jumps, err := jumpsTo(c, chains, func(from *nftables.Chain, to string) bool { return from.Hooknum == nil && to == markChain })
	users := map[string]bool{}
	for _, jump := range jumps {
		users[jump.Chain.Name+" of table "+nameOf(jump.Table)] = true
	}
	return slices.Sorted(maps.Keys(users)), err
}

func explainUsers(users []string) []string {
	if len(users) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("chains %s and %s: used by %s", markChain, maskChain, strings.Join(users, ", "))}
}

// explainRest says what cannot be removed here, and how it can.
func explainRest(rules Rules) []string {
	var left []string
	if len(rules.Legacy) > 0 {
		left = append(left, fmt.Sprintf("legacy iptables: tables %s have chains of kube-proxy, which that program alone can remove; run on the node: "+
			"for t in nat filter mangle; do iptables-legacy-save -t $t | grep -vE '%s' | iptables-legacy-restore; done, and the same with ip6tables-legacy",
			strings.Join(rules.Legacy, ", "), legacyPattern()))
	}
	if rules.IPVS {
		left = append(left, "IPVS: virtual servers and device "+ipvsDevice+", whose connections are not kept; when they have ended, run on the node: kube-proxy --cleanup")
	}
	return left
}

// legacyPattern matches the lines of kube-proxy's chains and rules.
func legacyPattern() string {
	names := make([]string, len(chainNames))
	for i, name := range chainNames {
		names[i] = strings.TrimPrefix(name, "KUBE-")
	}
	return "KUBE-(" + strings.Join(names, "|") + ")"
}
