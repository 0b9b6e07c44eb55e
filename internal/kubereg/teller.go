// SPDX-License-Identifier: Apache-2.0

package kubereg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"redoubt/internal/kube"
	"redoubt/internal/topo"
	"redoubt/internal/view"
)

// What objects carry. On a pod, which may have servers of several shards, the shard's name is in the keys.
const (
	noteEpoch    = "redoubt.io/epoch"
	noteRevision = "redoubt.io/revision"
	notePrimary  = "redoubt.io/primary" // of the latest tenure that was published
	noteShard    = "redoubt.io/shard"
	labelRole    = "redoubt.io/role"
	noteMax      = 1000 // most bytes of an event's words; the API server takes 1024
)

// teller tells the cluster of one shard.
type teller struct {
	o       Options
	part    Part
	service string // what its services' names begin with
	end     context.CancelFunc
	owner   map[string]*kube.Owner // by service; nil: there is no such service
	said    map[string]string      // by subject: the latest trouble, so that it is told once
	pods    map[topo.NodeID]*kube.Pod

	last   *view.Snapshot // what was told of; nil: nothing, or a round did not succeed
	latest picture        // that this member has told of
	next   time.Duration  // uptime of the next round that nothing has asked for
	move   string         // the latest planned move that was seen …
	moveAt time.Duration  // … and the uptime since when
	pause  time.Duration  // after a round that does not succeed
}

func newTeller(o Options, p Part, end context.CancelFunc) *teller {
	return &teller{o: o, part: p, service: ServiceOf(o.Service, p.Name), end: end, owner: map[string]*kube.Owner{}, said: map[string]string{}, pause: hurry}
}

// ServiceOf is what the names of a shard's services begin with; the deployment's in front of -primary and -read where there is one shard.
func ServiceOf(service, shard string) string {
	if shard == "" {
		return service
	}
	return service + "-" + plain(shard)
}

// plain is a shard's name as those of services may be.
func plain(name string) string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(strings.ToLower(name))
}

// key is that of a label or annotation of pods.
func (t *teller) key(name string) string {
	if t.part.Name == "" {
		return name
	}
	domain, what, _ := strings.Cut(name, "/")
	return what + "." + domain + "/" + plain(t.part.Name)
}

// look reports whether the cluster is to be told now.
func (t *teller) look(now time.Duration) bool {
	if t.part.Store.Controller() != t.o.Member {
		t.last, t.next, t.pause = nil, 0, hurry
		return false
	}
	snap := t.part.View.Load()
	return snap != nil && !t.moves(snap, now) && (t.changed() || now >= t.next)
}

// moves reports whether a planned move is under way that is worth waiting for: who is primary after it is told then. The dozen
// requests of a round would stand in the way of the two writes for which all clients wait.
func (t *teller) moves(snap *view.Snapshot, now time.Duration) bool {
	a := snap.Shard.Assigned
	if a.Intent == nil || a.Phase == topo.PhaseFencing {
		return false
	}
	if t.move != a.Intent.ID {
		t.move, t.moveAt = a.Intent.ID, now
	}
	return now-t.moveAt < moveTime
}

// changed reports whether there is something newer than what the cluster was told.
func (t *teller) changed() bool { return t.last != nil && t.part.View.Load().Rev != t.last.Rev }

// urgency orders tellers that are due.
func urgency(a, b *teller) int {
	rank := map[bool]int{false: 1}
	return cmp.Or(rank[a.changed()]-rank[b.changed()], cmp.Compare(a.next, b.next))
}

// run does one round.
func (t *teller) run(ctx context.Context) {
	snap := t.part.View.Load()
	t.last, t.next = snap, t.o.Clock.Uptime()+roundEvery
	switch err := t.round(ctx, snap); {
	case err == nil:
		t.pause = hurry
	case ctx.Err() == nil:
		t.trouble("round", err)
		t.last, t.next = nil, t.o.Clock.Uptime()+t.pause
		t.pause = min(2*t.pause, hurryMax)
	}
}

// leave takes back what was told of a shard that is no more.
func (t *teller) leave(ctx context.Context) {
	t.end()
	if t.part.Store.Controller() != t.o.Member {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	nobody := t.latest
	nobody.primary = ""
	err := t.lookForPods(ctx, nobody)
	for _, kind := range []string{primaryOf, readOf} {
		_, bad := t.publish(ctx, nobody, t.service+kind, func(place) bool { return false })
		err = errors.Join(err, bad)
	}
	for _, n := range nobody.nodes {
		err = errors.Join(err, t.label(ctx, nobody, n.id))
	}
	t.trouble("end of the shard", err)
}

// trouble is told once; nil ends it.
func (t *teller) trouble(subject string, err error) {
	if err == nil {
		delete(t.said, subject)
		return
	}
	if t.said[subject] == err.Error() {
		return
	}
	t.said[subject] = err.Error()
	t.o.Log.Warn("tell Kubernetes", "shard", t.part.ID, "subject", subject, "err", err)
}

// errLater: somebody has told of something later; this member has not heard of it yet.
var errLater = errors.New("a later state is published already; if the deployment was made anew under this name, delete the EndpointSlice, and the Endpoints of that name")

// round brings everything to the picture of now.
func (t *teller) round(ctx context.Context, snap *view.Snapshot) error {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	beats, err := t.part.Store.All(ctx)
	if err != nil {
		return fmt.Errorf("read the reports: %w", err)
	}
	p := paint(snap, view.DecodeReports(beats))
	t.latest = p
	if err := t.lookForPods(ctx, p); err != nil {
		return err
	}
	known, err := t.publish(ctx, p, t.service+primaryOf, func(n place) bool { return n.id == p.primary })
	if err != nil {
		return err
	}
	// Who loses the label does so first.
	for _, holds := range []bool{false, true} {
		for _, n := range p.nodes {
			if (n.id == p.primary) == holds {
				if err := t.label(ctx, p, n.id); err != nil {
					return err
				}
			}
		}
	}
	if _, err := t.publish(ctx, p, t.service+readOf, func(n place) bool { return n.reads }); err != nil {
		return err
	}
	if p.primary != "" && known != p.tenure() {
		t.announce(ctx, p)
	}
	t.trouble("round", nil)
	return nil
}

// lookForPods reads the pods of the data nodes, which have their names.
func (t *teller) lookForPods(ctx context.Context, p picture) error {
	t.pods = map[topo.NodeID]*kube.Pod{}
	for _, n := range p.nodes {
		var pod kube.Pod
		err := t.o.Client.Do(ctx, http.MethodGet, t.o.Client.Path("", "pods", string(n.id)), nil, "", nil, &pod)
		switch {
		case err == nil:
			t.pods[n.id] = &pod
		case !kube.Is(err, http.StatusNotFound):
			return fmt.Errorf("read pod %s: %w", n.id, err)
		}
	}
	return nil
}

// address is where a node is reached: as its pod has it or, without a pod, as the roster has it.
func (t *teller) address(n place) (string, *kube.Ref) {
	if pod := t.pods[n.id]; pod != nil {
		return pod.Status.PodIP, &kube.Ref{Kind: "Pod", Namespace: t.o.Client.Namespace(), Name: pod.Metadata.Name, UID: pod.Metadata.UID}
	}
	if ip := net.ParseIP(n.host); ip != nil && !ip.IsLoopback() {
		return ip.String(), nil
	}
	return "", nil
}

// label brings the label of a node's pod to the picture.
func (t *teller) label(ctx context.Context, p picture, id topo.NodeID) error {
	pod := t.pods[id]
	if pod == nil {
		return nil
	}
	labelKey, epochKey, revKey := t.key(labelRole), t.key(noteEpoch), t.key(noteRevision)
	role, was := p.role(id), stampOf(pod.Metadata, epochKey, revKey)
	if p.at.before(was) {
		return fmt.Errorf("pod %s: %w", id, errLater)
	}
	if pod.Metadata.Labels[labelKey] == role && was.epoch == p.at.epoch {
		return nil
	}
	patch := map[string]any{"metadata": map[string]any{
		"resourceVersion": pod.Metadata.ResourceVersion, "labels": map[string]string{labelKey: role},
		"annotations": map[string]string{epochKey: strconv.FormatUint(uint64(p.at.epoch), 10), revKey: strconv.FormatUint(uint64(p.at.rev), 10)},
	}}
	err := t.o.Client.Do(ctx, http.MethodPatch, t.o.Client.Path("", "pods", string(id)), nil, kube.Merge, patch, nil)
	if err != nil && !kube.Is(err, http.StatusNotFound) {
		return fmt.Errorf("label pod %s: %w", id, err)
	}
	return nil
}

// announce writes an Event about a new primary. One that does not arrive is not repeated: the agreed state has its own record.
func (t *teller) announce(ctx context.Context, p picture) {
	about := kube.Ref{APIVersion: "v1", Kind: "Service", Namespace: t.o.Client.Namespace(), Name: t.service + primaryOf}
	if pod := t.pods[p.primary]; pod != nil {
		about = kube.Ref{APIVersion: "v1", Kind: "Pod", Namespace: about.Namespace, Name: pod.Metadata.Name, UID: pod.Metadata.UID}
	}
	note := fmt.Sprintf("%s is the primary of %s, epoch %d: %s", p.primary, t.service, p.at.epoch, p.why)
	e := kube.News{
		Type: kube.Type{Kind: "Event", APIVersion: "events.k8s.io/v1"}, Metadata: kube.Meta{GenerateName: t.service + "-", Namespace: about.Namespace},
		EventTime: kube.MicroTime(t.o.Clock.Now()), ReportingController: "redoubt.io/controller", ReportingInstance: t.o.Member, Action: "Promote", Reason: "PrimaryChanged",
		Regarding: about, Note: note[:min(len(note), noteMax)], Severity: "Normal",
	}
	t.trouble("event", t.o.Client.Do(ctx, http.MethodPost, t.o.Client.Path("events.k8s.io/v1", "events"), nil, kube.JSON, e, nil))
	t.o.Log.Info("Kubernetes was told of the primary", "primary", p.primary, "epoch", p.at.epoch, "service", t.service+primaryOf)
}
