# Redoubt. `make` prints this help; README's two commands are `make up` and `make test`.
SHELL := /bin/bash
GO ?= go
BIN := bin/redoubt
TOOLS := $(GO) tool -modfile=tools/go.mod
SEEDS ?= 2000
SEED ?= 0
DIR ?= .redoubt
PORT ?= 6379
E2E := $(GO) test ./test/e2e -count=1 -v -timeout 40m

.PHONY: help
help: ## print this help
	@awk 'BEGIN{FS=":.*## "} /^[a-z][a-zA-Z0-9_-]*:.*## /{printf "  make %-18s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/redoubt
	@mkdir -p bin && CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/redoubt

.PHONY: deps
deps: ## install what is needed to run: a redis-server, if there is none
	@scripts/deps.sh server

.PHONY: up
up: deps build ## start a three-node deployment on this machine (DIR=.redoubt PORT=6379)
	@$(BIN) up --dir $(DIR) --base-port $(PORT)

.PHONY: down
down: build ## stop the deployment that `make up` started
	@$(BIN) down --dir $(DIR)

.PHONY: check
check: deps ## the quick gate: format, vet, staticcheck, layers, unit tests, scenarios, 300 simulation seeds
	@scripts/check.sh

.PHONY: test
test: ## everything: check, real servers, real failovers with unmodified clients
	@scripts/deps.sh clients
	@scripts/deps.sh stores || echo "without etcd the tests of stores outside are skipped"
	@$(MAKE) --no-print-directory build
	@$(GO) vet ./...
	@$(GO) test -count=1 -p 2 -timeout 20m ./test/e2e $$($(GO) list ./... | grep -v /test/e2e$$) # the longest first: most of its time is waiting

.PHONY: sim
sim: ## simulation: SEEDS=100000, or SEED=213 to replay one with its timeline
	@$(GO) test ./internal/sim -count=1 -timeout 0 -run TestSeeds -v -args -seeds $(SEEDS) -seed $(SEED) $(if $(FROM),-from $(FROM))

.PHONY: sim-planted
sim-planted: ## every planted bug must be found by the simulator (BUG=name for one), those of exact retry by the proxy's tests
	@$(GO) test ./internal/sim -count=1 -timeout 0 -tags planted -run TestPlanted -v -args $(if $(BUG),-bug $(BUG))
	@$(if $(BUG),,$(GO) test ./internal/proxy -count=1 -tags planted -run TestPlanted -v)

.PHONY: fuzz
fuzz: deps ## fuzz the RESP parser, replies, and whole sessions beside a real server, FUZZTIME=60s each
	@for p in ./internal/resp ./internal/proxy; do for f in $$($(GO) test $$p -list '^Fuzz' | grep ^Fuzz); do \
	  echo "$$p $$f"; $(GO) test $$p -run xxx -fuzz "^$$f$$" -fuzztime $(or $(FUZZTIME),60s) -fuzzminimizetime 10x -parallel $(or $(FUZZPROCS),2) || exit 1; done; done

.PHONY: test-clients-deps
test-clients-deps:
	@scripts/deps.sh clients

.PHONY: bench-kill
bench-kill: build test-clients-deps ## 20 × kill -9 of the primary's server under four unmodified clients
	@$(E2E) -run TestKillPrimary -args -rounds $(or $(ROUNDS),20)

.PHONY: bench-hang
bench-hang: build test-clients-deps ## 10 × SIGSTOP of the primary's server
	@$(E2E) -run TestHangPrimary -args -rounds $(or $(ROUNDS),10)

.PHONY: bench-host
bench-host: build test-clients-deps ## 10 × kill -9 of agent and server together
	@$(E2E) -run TestKillHost -args -rounds $(or $(ROUNDS),10)

.PHONY: bench-cluster
bench-cluster: build test-clients-deps ## mode cluster: kill, hang, host loss, switchover of one shard's primary; kill and hang beside Redis Cluster's own failover
	@$(E2E) -run 'TestClusterUnderLoad|TestClusterBesideNative' -args -rounds $(or $(ROUNDS),5)

.PHONY: bench-partition
bench-partition: build ## 10 × isolation of the host of primary and controller, in network namespaces (root)
	@$(E2E) -run TestPartition -args -rounds $(or $(ROUNDS),10)

.PHONY: bench-switchover
bench-switchover: build test-clients-deps ## 20 × planned switchover under load
	@$(E2E) -run TestSwitchover -args -rounds $(or $(ROUNDS),20)

.PHONY: bench-quorum
bench-quorum: build ## what quorum costs against async: 1, 50, 500 clients, interleaved
	@$(E2E) -run TestWhatQuorumCosts -args -rounds $(or $(ROUNDS),7)

.PHONY: bench-reads
bench-reads: build ## what reads cost with quorum: local, lease, linearizable, interleaved
	@$(E2E) -run TestWhatReadsCost -args -rounds $(or $(ROUNDS),5)

.PHONY: bench-exact
bench-exact: build ## what retry: exact costs against plain quorum: 1, 50, 500 clients, interleaved
	@$(E2E) -run TestWhatExactCosts -args -rounds $(or $(ROUNDS),7)

.PHONY: bench-disk
bench-disk: build ## what quorum+disk costs against quorum (REDOUBT_TEST_SERVER=a server of Redis 7.4 or Valkey 8.0)
	@$(E2E) -run TestWhatDisksCost -args -rounds $(or $(ROUNDS),5)

.PHONY: bench-proxy
bench-proxy: build ## the proxy beside a direct connection, twemproxy, predixy, HAProxy (ARGS="-rounds 3", OUT=file.md)
	@scripts/bench-proxy.sh $(if $(OUT),-out $(OUT)) $(ARGS)

.PHONY: bench-front
bench-front: build ## the front of four shards beside twemproxy and predixy over the same servers (ARGS="-rounds 3", OUT=file.md)
	@scripts/bench-proxy.sh -shards 4 -out $(or $(OUT),bin/bench-front.md) $(ARGS)

.PHONY: show-ring-growth
show-ring-growth: build ## a shard joins a ring of KEYS=300000 and another one leaves it, through kills and a stopped front
	@$(E2E) -run TestARingGrowsThroughFailures -args -keys $(or $(KEYS),300000)

.PHONY: show-first-ack
show-first-ack: build ## kill the first primary right after its first acknowledged write, 50 fresh deployments
	@$(E2E) -run TestFirstAck -args -rounds $(or $(ROUNDS),50)

.PHONY: show-exact
show-exact: build ## retry: exact: 100 × kill -9 of the primary's server under counters: the keys are what was acknowledged
	@$(E2E) -run TestExactThroughKills -args -rounds $(or $(ROUNDS),100)

.PHONY: show-disk
show-disk: build ## quorum+disk: the primary, then everything killed at once; the power cut off (REDOUBT_TEST_SERVER as for bench-disk; root)
	@$(E2E) -run 'TestQuorumDisk|TestALossOfPower' -args -rounds $(or $(ROUNDS),10)

.PHONY: show-restarts
show-restarts: build ## everything killed at once, wiped primaries, forgetful replicas, a long script
	@$(E2E) -run 'TestColdStart|TestWipedPrimary|TestForgetfulReplica|TestLongScript'

.PHONY: show-sentinel
show-sentinel: build test-matrix-deps ## eight Sentinel-aware libraries follow a kill and a switchover, in both address modes; the face beside a real Sentinel
	@$(E2E) -run 'TestSentinelClients|TestTheFaceAnswers' -args -matrix

.PHONY: show-adopt
show-adopt: build test-clients-deps ## real Sentinels under load are taken over from, and handed back to: no failover, no error
	@$(E2E) -run 'TestSentinelsAreTakenOver|TestTakingOver'

.PHONY: kube-apiserver
kube-apiserver: ## build the real API server of Kubernetes into the user's cache, for tests (6 minutes, once)
	@scripts/kube-apiserver.sh

.PHONY: helm
helm: ## build helm into the user's cache, for the chart's test
	@scripts/helm.sh

.PHONY: manifests
manifests: ## write deploy/kubernetes/redoubt.yaml from the chart in deploy/helm
	@h=$$(scripts/helm.sh) && { echo "# SPDX-License-Identifier: Apache-2.0"; echo "# Written by make manifests from deploy/helm/redoubt, release and namespace: redoubt, default."; \
	  $$h template redoubt deploy/helm/redoubt -n default; } > deploy/kubernetes/redoubt.yaml

.PHONY: show-kubernetes
show-kubernetes: kube-apiserver build test-clients-deps helm ## Kubernetes: store, announcer, rolling update, manifests, against the real API server
	@$(GO) test ./test/kubeapi ./internal/coord/kubestore ./internal/kubereg ./deploy/... -count=1 -p 1 -timeout 10m
	@$(E2E) -run 'Kubernetes|TheSmallAPIServer|TestARollingUpdateOfARing' -args -matrix

.PHONY: show-churn
show-churn: ## 200,000 connections that come and go: no leak of memory, goroutines or descriptors
	@CHURN=200000 $(GO) test ./internal/proxy -count=1 -timeout 10m -run TestConnectionsComeAndGo -v

CHAOS = d=$$(mktemp -d) && trap 'rm -rf $$d' EXIT && CGO_ENABLED=0 $(GO) build -o $$d/chaos ./test/chaos && $$d/chaos

.PHONY: chaos-deps
chaos-deps:
	@scripts/deps.sh chaos

.PHONY: chaos
chaos: chaos-deps ## faults on real hosts under traffic, histories judged: SEEDS=5 SEED=7 MODE=quorum|async|direct|sentinel|cluster SECONDS=60 HOSTS=3|5 CLUSTER=1 (root)
	@$(CHAOS) $(if $(CLUSTER),-cluster) -mode $(or $(MODE),quorum) -seeds $(if $(filter file,$(origin SEEDS)),1,$(SEEDS)) -seed $(SEED) -seconds $(or $(SECONDS),60) -hosts $(or $(HOSTS),0) $(ARGS)

.PHONY: chaos-quick
chaos-quick: chaos-deps ## four short seeds, and a planted loss that must be found: 2 minutes (root)
	@$(CHAOS) -quick -seed $(SEED) $(ARGS)

.PHONY: chaos-stores
chaos-stores: chaos-deps ## the same over each store outside: STORES="etcd consul kubernetes" (REDOUBT_TEST_CONSUL=bin/consul; make kube-apiserver; root)
	@scripts/deps.sh stores
	@for s in $(or $(STORES),etcd consul kubernetes); do $(MAKE) --no-print-directory chaos-quick ARGS="-store $$s $(ARGS)" || exit 1; done

.PHONY: soak
soak: chaos-deps ## HOURS=8 of further seeds (root)
	@$(CHAOS) -soak $(or $(HOURS),1)h -seed $(SEED) -hosts $(or $(HOSTS),0) $(ARGS)

.PHONY: chaos-compare
chaos-compare: chaos-deps test-clients-deps ## single faults of the primary: Redoubt, Sentinel and Cluster side by side: SEEDS=2 SYSTEMS=all (root)
	@$(CHAOS) -compare $(or $(SYSTEMS),all) -seeds $(if $(filter file,$(origin SEEDS)),2,$(SEEDS)) -seed $(SEED) $(ARGS)

.PHONY: test-matrix-deps
test-matrix-deps:
	@scripts/deps.sh matrix

.PHONY: show-clients
show-clients: build test-matrix-deps ## nine client libraries and redis-benchmark, as they come, through a kill and a switchover
	@$(E2E) -run 'TestClientMatrix|TestBenchmarkTool|TestTransactionsOfManyClients' -args -matrix

.PHONY: show-frameworks
show-frameworks: build test-matrix-deps ## BullMQ, Celery, Sidekiq and express-session keep jobs and sessions through a kill
	@$(E2E) -run TestFrameworks -args -matrix

.PHONY: show-cold
show-cold: build ## everything killed at once, started in every order; then one disk deleted
	@$(E2E) -run "TestColdStartsInEvery|TestColdStartsTake" -args -rounds 1

.PHONY: show-outage
show-outage: build ## the store's majority stopped for 30 s: service goes on; then with an agent dead: the primary fences itself
	@$(E2E) -run 'TestAStoreOutage|TestAPrimaryFencesItselfInAnOutage' -args -outage $(or $(OUTAGE),30s)

.PHONY: show-fence
show-fence: build ## 50 × isolation of the primary's host: how long it accepts direct writes (root)
	@$(E2E) -run TestAPartitionedPrimary -args -rounds $(or $(ROUNDS),50)

.PHONY: show-grow
show-grow: build ## durability, ack-replicas and the roster change under load; the primary is killed right afterwards; one copy of two
	@$(E2E) -run 'TestDurabilityChangesUnderLoad|TestNodesJoin|TestOfTwoNodes' -args -rounds $(or $(ROUNDS),3)

.PHONY: show-upgrade
show-upgrade: build ## replace the process of each member under 600 idle, 12 writing, blocked, subscribed and transacting clients; then of one with 10,000
	@$(E2E) -run TestUpgrade -args -matrix -rounds $(or $(ROUNDS),3)

.PHONY: bench-ring
bench-ring: build ## 4 × (1+2) ring: kill, SIGSTOP and switchover of one shard's primary under load: that shard, and the others
	@$(E2E) -run TestRingUnderLoad -args -rounds $(or $(ROUNDS),8)

.PHONY: etcd
etcd: ## build bin/etcd 3.7.3, in place of the system's: REDOUBT_TEST_ETCD=$$PWD/bin/etcd (never shipped)
	@mkdir -p bin && cd tools/etcd && $(GO) build -o ../../bin/etcd go.etcd.io/etcd/server/v3

.PHONY: consul
consul: ## build bin/consul, against which the tests of stores can run (6 minutes; never shipped)
	@mkdir -p bin && cd tools/consul && $(GO) build -o ../../bin/consul github.com/hashicorp/consul

.PHONY: bench-stores
bench-stores: build test-clients-deps ## the same failovers over raft, etcd and consul (REDOUBT_TEST_CONSUL=bin/consul): kill, host loss with and without the controller, switchover
	@scripts/deps.sh stores
	@$(if $(REDOUBT_TEST_CONSUL),REDOUBT_TEST_CONSUL=$(abspath $(REDOUBT_TEST_CONSUL))) $(E2E) -run TestStoresBesideEachOther -args -rounds 10

.PHONY: show-stores
show-stores: build test-clients-deps ## deployments over etcd and consul: the primary, hosts, single nodes of the store, and all of them for 30 s
	@scripts/deps.sh stores
	@$(if $(REDOUBT_TEST_CONSUL),REDOUBT_TEST_CONSUL=$(abspath $(REDOUBT_TEST_CONSUL))) $(E2E) -run 'TestServiceOver|TestTwoMembers' -args -rounds 2 -outage 30s

.PHONY: bench-move
bench-move: ## slots of a cluster move: how long their clients wait, how fast, beside redis-cli; a list of 1,000,000 elements and 100 MiB
	@$(GO) test ./internal/mover -count=1 -v -timeout 20m -run 'HowLong|HowFast' -args -speed
	@$(GO) test ./internal/mover -count=1 -v -timeout 20m -run LargeValuesMove -args -large

.PHONY: show-migrate
show-migrate: build ## a server, a cluster, Sentinels and a pool move into deployments under writers that go along: every key compared (ROUNDS=10 for 50,000 × 6 keys)
	@$(E2E) -run 'TestMigrate' -parallel 1 -args -rounds $(or $(ROUNDS),2)

.PHONY: show-reshard
show-reshard: build ## two shards are added to a cluster of KEYS=5000000 keys under 20,000 writes/s, rebalance: auto; beside redis-cli --cluster rebalance
	@$(E2E) -run TestTwoShardsAreAdded -args -keys $(or $(KEYS),5000000)

.PHONY: show-stress
show-stress: build ## MINUTES=10 of CPU stress with stalls of 500 ms: no failover
	@$(E2E) -run TestStress -args -minutes $(or $(MINUTES),10)

.PHONY: bench-address
bench-address: build ## the floating address: its holder killed, cut off, stopped; beside the real keepalived, where it is installed (root)
	@$(E2E) -run 'TestTheFloatingAddress|TestKeepalivedBesideIt' -args -rounds $(or $(ROUNDS),5)

.PHONY: show-discovery
show-discovery: build ## HAProxy, dig, twemproxy and Consul's API follow a kill and a switchover (REDOUBT_TEST_CONSUL=a consul)
	@$(E2E) -run 'TestHAProxyFollows|TestDNSFollows|TestATwemproxyIsKept|TestConsulIsTold' -args -rounds $(or $(ROUNDS),3)

.PHONY: clean
clean: ## remove what was built
	@rm -rf bin
