package packet

import "testing"

// mostVerified is what the kernel may have to go through to accept a program: a tenth of its own limit, so
// that older verifiers, which see more states, have room.
const mostVerified = 100_000

// The verifier accepts every program after a bounded number of instructions.
func TestVerifiedInstructions(t *testing.T) {
	world, err := worlds.get(DefaultSettings())
	if err != nil {
		t.Fatal(err)
	}
	counts, err := world.Programs.VerifiedInstructions()
	if err != nil {
		t.Fatal(err)
	}
	if len(counts) < 5 {
		t.Fatalf("the kernel says only of %d programs how much it verified", len(counts))
	}
	for name, count := range counts {
		t.Logf("%-14s %6d instructions verified", name, count)
		if count > mostVerified {
			t.Errorf("%s takes %d instructions to verify, more than %d", name, count, mostVerified)
		}
	}
}
