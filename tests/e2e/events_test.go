package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestE14_Event: an endpoint that is another Service's VIP is refused, which its Service is told.
func TestE14_Event(t *testing.T) {
	healthy(t)
	other := create(t, app("named"), cluster.lab.Web[0])
	service := app("naming")
	service.Spec.Selector = nil
	service = create(t, service)
	slices := cluster.Admin.DiscoveryV1().EndpointSlices("default")
	_, err := slices.Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "naming-1", Labels: map[string]string{discoveryv1.LabelServiceName: service.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("tcp"), Port: ptr.To(int32(80))}},
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{other.Spec.ClusterIP}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := slices.Delete(contextOf(t), "naming-1", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, func() error {
		described, err := cluster.Kubectl("", "describe", "service", service.Name)
		if err != nil {
			return err
		}
		for _, want := range []string{"EndpointRefused", "weir", "EndpointSlice default/naming-1", "Service default/named"} {
			if !strings.Contains(described, want) {
				return fmt.Errorf("kubectl describe does not say %q:\n%s", want, described)
			}
		}
		return nil
	})
}
