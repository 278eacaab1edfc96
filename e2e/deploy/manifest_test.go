package deploy

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"transom/cmd/transom/demo/bank"
	"transom/gateway"
	"transom/gateway/configfile"
)

// manifests are the objects of deploy/kubernetes/transom.yaml, decoded into Kubernetes's own types. A field that a type does
// not have is a fault.
func manifests(t *testing.T) map[string]any {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/kubernetes/transom.yaml")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]any{
		"v1/ConfigMap": &corev1.ConfigMap{}, "v1/ServiceAccount": &corev1.ServiceAccount{}, "v1/Service": &corev1.Service{},
		"rbac.authorization.k8s.io/v1/Role": &rbacv1.Role{}, "rbac.authorization.k8s.io/v1/RoleBinding": &rbacv1.RoleBinding{},
		"apps/v1/Deployment": &appsv1.Deployment{}, "autoscaling/v2/HorizontalPodAutoscaler": &autoscalingv2.HorizontalPodAutoscaler{},
		"policy/v1/PodDisruptionBudget": &policyv1.PodDisruptionBudget{},
	}
	all := map[string]any{}
	for _, doc := range strings.Split(string(raw), "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
			t.Fatal(err)
		}
		obj := types[meta.APIVersion+"/"+meta.Kind]
		if obj == nil || all[meta.Kind] != nil {
			t.Fatalf("%s %s is unknown, or there twice", meta.APIVersion, meta.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), obj); err != nil {
			t.Errorf("%s: %v", meta.Kind, err)
		}
		all[meta.Kind] = obj
	}
	if len(all) != len(types) {
		t.Fatalf("%d objects, want %d", len(all), len(types))
	}
	return all
}

// TestKubernetes decodes the manifests strictly, holds them to each other, and asks a gateway with the configuration in them
// what the probes would.
func TestKubernetes(t *testing.T) {
	all := manifests(t)
	deployment := all["Deployment"].(*appsv1.Deployment)
	pod := deployment.Spec.Template
	c := pod.Spec.Containers[0]
	matches := func(what string, labels map[string]string) {
		t.Helper()
		if len(labels) == 0 {
			t.Errorf("%s selects everything", what)
		}
		for k, v := range labels {
			if pod.Labels[k] != v {
				t.Errorf("%s selects %s=%s, which the pods do not have", what, k, v)
			}
		}
	}
	matches("the Deployment", deployment.Spec.Selector.MatchLabels)
	matches("the PodDisruptionBudget", all["PodDisruptionBudget"].(*policyv1.PodDisruptionBudget).Spec.Selector.MatchLabels)
	service := all["Service"].(*corev1.Service)
	matches("the Service", service.Spec.Selector)
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	for _, p := range service.Spec.Ports {
		if ports[p.TargetPort.StrVal] == 0 {
			t.Errorf("the Service goes to port %q, which the container has not", p.TargetPort.StrVal)
		}
	}
	if target := all["HorizontalPodAutoscaler"].(*autoscalingv2.HorizontalPodAutoscaler).Spec.ScaleTargetRef; target.Name != deployment.Name || target.Kind != "Deployment" {
		t.Errorf("the HorizontalPodAutoscaler scales %+v", target)
	}
	binding := all["RoleBinding"].(*rbacv1.RoleBinding)
	if binding.RoleRef.Name != all["Role"].(*rbacv1.Role).Name || binding.Subjects[0].Name != pod.Spec.ServiceAccountName ||
		pod.Spec.ServiceAccountName != all["ServiceAccount"].(*corev1.ServiceAccount).Name {
		t.Error("the Role does not reach the pods")
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	for _, m := range c.VolumeMounts {
		if !volumes[m.Name] {
			t.Errorf("there is no volume %q", m.Name)
		}
	}
	text := all["ConfigMap"].(*corev1.ConfigMap).Data["transom.yaml"]
	config := filepath.Join(t.TempDir(), "transom.yaml")
	if !slices.Contains(c.Args, "/etc/transom/config/transom.yaml") {
		t.Errorf("args: %q", c.Args)
	}
	file, admin := inForce(t, text, config)
	if grace := *pod.Spec.TerminationGracePeriodSeconds; float64(grace) <= (file.Config.GetDrain().GetDelay().AsDuration() + file.Config.GetDrain().GetTimeout().AsDuration()).Seconds() {
		t.Errorf("terminationGracePeriodSeconds is %d, and the drain may take longer", grace)
	}
	for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if ports[p.HTTPGet.Port.StrVal] != 9901 {
			t.Errorf("the %s probe asks port %q", name, p.HTTPGet.Port.StrVal)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+p.HTTPGet.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "10.1.2.3:9901" // the pod's address, as the kubelet has it
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusOK {
			t.Errorf("the %s probe gets %d", name, resp.StatusCode)
		}
	}
}

var places = regexp.MustCompile(`/etc/transom/[a-z/]*?([a-z.]+)([,}\n])`)

// inForce runs a gateway with a configuration from below deploy/, on free ports and with files that a test has, until the test
// ends. It returns the configuration as it was written and the address of the admin listener.
func inForce(t *testing.T, text, path string) (*configfile.File, string) {
	t.Helper()
	dir := filepath.Dir(path)
	for name, data := range map[string][]byte{"bank.binpb": bank.DescriptorSet(), "token": []byte("secret"), "admin.token": []byte("secret")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := func(name string) (string, bool) {
		v, ok := map[string]string{"NAMESPACE": "default", "UPSTREAM": "127.0.0.1:1"}[name]
		return v, ok
	}
	file, err := configfile.Parse(path, []byte(places.ReplaceAllString(text, dir+"/$1$2")), env)
	if err != nil {
		t.Fatal(err)
	}
	cfg := proto.CloneOf(file.Config)
	cfg.Drain = nil // a test has no load balancer to wait for
	for _, l := range cfg.GetListeners() {
		l.Address = "127.0.0.1:0"
	}
	cfg.Admin.Address = "127.0.0.1:0"
	for _, c := range cfg.GetClusters() {
		if strings.HasPrefix(c.GetTarget(), "kubernetes:") { // there is no API server here
			c.Target = "127.0.0.1:1"
		}
	}
	g, err := gateway.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(gateway.Locate(err, file))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		wg.Wait()
	})
	return file, g.AdminAddr().String()
}

// TestCompose loads the compose file as Compose does, with its schema, and starts a gateway with its configuration.
func TestCompose(t *testing.T) {
	options, err := cli.NewProjectOptions([]string{"../../deploy/compose/compose.yaml"}, cli.WithEnv([]string{"UPSTREAM=host:1", "ADMIN_TOKEN=secret"}))
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exists := func(path string) {
		t.Helper()
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for _, c := range project.Configs {
		if c.File != "" {
			exists(c.File)
		}
	}
	if s := project.Secrets["admin"]; s.Environment != "ADMIN_TOKEN" { // none is shipped
		t.Errorf("the admin token is %+v", s)
	}
	b := project.Services["transom"].Build
	exists(filepath.Join(b.Context, b.Dockerfile))
	raw, err := os.ReadFile(project.Configs["transom"].File)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte("reflection: {cluster: main}"), []byte("file: /etc/transom/bank.binpb"), 1)
	_, admin := inForce(t, string(raw), filepath.Join(t.TempDir(), "transom.yaml"))
	for token, want := range map[string]int{"secret": http.StatusOK, "other": http.StatusUnauthorized} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+admin+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "transom:9901" // what Prometheus asks for
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _ = resp.Body.Close(); resp.StatusCode != want {
			t.Errorf("token %s: %d, want %d", token, resp.StatusCode, want)
		}
	}
}
