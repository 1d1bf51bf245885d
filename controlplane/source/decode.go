package source

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// maxListDepth is how deep Lists may stand in Lists.
const maxListDepth = 4

// decoded is what a document says.
type decoded struct {
	objects  []metav1.Object // with defaults, and free of impossible names
	errors   []error         // what could not be read; the objects are the rest
	warnings []error         // what was read, but is probably not meant so
	ignored  []string        // kinds that services are not made of
}

// typeMeta is read first, to know what the rest is.
type typeMeta struct {
	APIVersion string                 `json:"apiVersion"`
	Kind       string                 `json:"kind"`
	Items      []runtime.RawExtension `json:"items"`
}

// decode reads a document.
func decode(d document) decoded {
	var out decoded
	text := d.text
	if !d.json {
		var err error
		if text, err = yaml.YAMLToJSONStrict(text); err != nil {
			out.errors = append(out.errors, errors.New(inFile(err.Error(), d.base)))
			return out
		}
	}
	out.decode(text, typeMeta{}, 0)
	return out
}

// yamlLine finds the line numbers in the errors of the YAML parser.
var yamlLine = regexp.MustCompile(`line (\d+)`)

// inFile turns the line numbers of a YAML error from the document's into the file's.
func inFile(message string, base int) string {
	message = strings.ReplaceAll(strings.TrimPrefix(message, "yaml: "), "\n ", "")
	return yamlLine.ReplaceAllStringFunc(message, func(match string) string {
		line, err := strconv.Atoi(strings.TrimPrefix(match, "line "))
		if err != nil {
			return match
		}
		return fmt.Sprintf("line %d", base+line-1)
	})
}

// decode reads an object, which has the type of its list if it names none itself.
func (out *decoded) decode(text []byte, standard typeMeta, depth int) {
	meta := standard
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &meta); err != nil {
		out.fail("", err)
		return
	}
	switch meta.APIVersion + " " + meta.Kind {
	case "v1 Service":
		read(out, text, &corev1.Service{})
	case "v1 Endpoints":
		read(out, text, &endpoints{})
	case "v1 Node":
		read(out, text, &corev1.Node{})
	case "v1 Pod":
		read(out, text, &corev1.Pod{})
	case "v1 Namespace":
		read(out, text, &corev1.Namespace{})
	case "discovery.k8s.io/v1 EndpointSlice":
		read(out, text, &discoveryv1.EndpointSlice{})
	case "networking.k8s.io/v1 ServiceCIDR":
		read(out, text, &networkingv1.ServiceCIDR{})
	case "v1 List", "v1 ServiceList", "v1 EndpointsList", "v1 NodeList", "v1 PodList", "v1 NamespaceList",
		"discovery.k8s.io/v1 EndpointSliceList", "networking.k8s.io/v1 ServiceCIDRList":
		out.decodeList(meta, depth)
	default:
		if meta.Kind == "" || meta.APIVersion == "" {
			out.fail("", errors.New("apiVersion or kind is missing"))
			return
		}
		out.ignored = append(out.ignored, meta.APIVersion+" "+meta.Kind)
	}
}

// decodeList reads the items of a list, each by itself.
func (out *decoded) decodeList(list typeMeta, depth int) {
	if depth == maxListDepth {
		out.fail("", fmt.Errorf("a List within %d Lists", depth))
		return
	}
	items := typeMeta{APIVersion: list.APIVersion, Kind: strings.TrimSuffix(list.Kind, "List")}
	for _, item := range list.Items {
		out.decode(item.Raw, items, depth+1)
	}
}

// read decodes, completes and checks one object.
func read[T metav1.Object](out *decoded, text []byte, object T) {
	warnings, err := kjson.UnmarshalStrict(text, object)
	setDefaults(object)
	name := nameOf(object)
	if err != nil {
		out.fail(name, err)
		return
	}
	for _, warning := range warnings {
		out.warnings = append(out.warnings, fmt.Errorf("%s: %w", name, warning))
	}
	object.SetManagedFields(nil) // large, and nothing of it is used
	if err := validate(object); err != nil {
		out.fail(name, err)
		return
	}
	out.objects = append(out.objects, object)
}

// fail notes an error of an object, which is named if its name is known.
func (out *decoded) fail(name string, err error) {
	if name != "" {
		err = fmt.Errorf("%s: %w", name, err)
	}
	out.errors = append(out.errors, err)
}

// kindOf returns the kind of an object that we read.
func kindOf(object metav1.Object) string {
	switch object.(type) {
	case *corev1.Service:
		return "Service"
	case *endpoints:
		return "Endpoints"
	case *corev1.Node:
		return "Node"
	case *corev1.Pod:
		return "Pod"
	case *corev1.Namespace:
		return "Namespace"
	case *networkingv1.ServiceCIDR:
		return "ServiceCIDR"
	default:
		return "EndpointSlice"
	}
}

// nameOf names an object as problems do; it is empty if the object has no name.
func nameOf(object metav1.Object) string {
	if object.GetName() == "" {
		return ""
	}
	return keyOf(object).String()
}
