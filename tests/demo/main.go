// Demo balances real traffic on this machine: it builds the lab of tests/lab, starts weir agent on the lab's node1 with
// the Services of manifests/, sends requests with curl and by UDP, and shows who answered. `make demo` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/weir-lb/weir/tests/lab"
)

func main() {
	lab.RunHelper()
	weir := flag.String("weir", "bin/weir", "the weir binary")
	keep := flag.Bool("keep", false, "leave the lab on the machine")
	remove := flag.Bool("remove", false, "remove the labs that -keep left, and do nothing else")
	serve := flag.String("serve", "", "serve as the pod of that name, in the network namespace it is started in")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case *serve != "":
		err = lab.WaitServe(ctx, *serve)
	case *remove:
		err = removeKept()
	default:
		err = demo(ctx, *weir, *keep)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
}

// demo builds the lab, shows everything, and removes the lab unless told to keep it.
func demo(ctx context.Context, weir string, keep bool) (err error) {
	weir, err = filepath.Abs(weir)
	if err != nil {
		return err
	}
	session, err := lab.Open()
	if err != nil {
		return err
	}
	l, err := session.Build(lab.Options{Netfilter: true, NoServers: true})
	if err != nil {
		return errors.Join(err, session.Close())
	}
	s := &show{Lab: l, ctx: ctx}
	if s.agent, err = start(l, weir); err == nil {
		err = s.everything()
	}
	if keep && err == nil {
		if _, err := session.Keep(); err != nil {
			return err
		}
		s.sayHowToLookAround()
		return nil
	}
	if closed := errors.Join(l.Close(), session.Close()); closed != nil {
		return errors.Join(err, closed)
	}
	if err == nil {
		fmt.Println("\nEverything is removed again. `make demo KEEP=1` leaves it up to look around.")
	}
	return err
}

// start starts the pods' servers and the agent.
func start(l *lab.Lab, weir string) (*lab.Agent, error) {
	for _, pod := range l.Web {
		if err := startServers(pod); err != nil {
			return nil, err
		}
	}
	agent, err := l.NewAgent(weir)
	if err != nil {
		return nil, err
	}
	if err := writeManifests(agent); err != nil {
		return nil, err
	}
	return agent, agent.Start()
}

// startServers starts this program again, as the servers of a pod.
func startServers(pod *lab.Host) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	servers := exec.Command(self, "-serve", pod.Role)
	// An interrupt of the demo is not theirs: they end with the lab.
	servers.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := pod.Start(servers); err != nil {
		return err
	}
	go servers.Wait() //nolint:errcheck // killed with the lab
	return nil
}

// removeKept removes every lab that was left up.
func removeKept() error {
	ids, err := lab.Kept()
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		fmt.Println("No lab was left up.")
	}
	for _, id := range ids {
		if err := lab.Remove(id); err != nil {
			return err
		}
		fmt.Printf("Removed lab %s.\n", id)
	}
	return nil
}
