//! The same for every gateway: people work in three pods while pods join, are replaced and die.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use affinity::{Membership, Node, NodeId, NodeState, SessionKey, plan::plan};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures::{StreamExt, TryStreamExt, stream};
use harness::{
    browser::{self, Browser, Connections, Method, tally},
    envoy::{Bootstrap, Envoy, socket},
    person::Person,
    process::{free_port, wait_until},
    tools,
};
use serde_json::{Value, json};

use crate::{
    eds,
    manifests::{Manifests, text},
    pods::{Pod, Pods, TOKEN},
};

const BROWSERS: usize = 200;
const PEOPLE: usize = 45;

/// What stands in front of the pods.
pub(crate) struct Gateway {
    /// Makes the bootstrap; the folder is where endpoints are told.
    pub(crate) bootstrap: fn(&Manifests, &Path) -> Result<Value>,
    /// The port of each cluster's endpoints.
    pub(crate) clusters: BTreeMap<String, u16>,
    /// The environment variables of Envoy's pods that hold the filter's token.
    pub(crate) variables: Vec<String>,
    /// Whether a request that its server refuses goes to the standby and nowhere else.
    pub(crate) has_standby: bool,
}

/// Pods behind a gateway.
struct Place {
    pods: Pods,
    envoy: Envoy,
    address: SocketAddr,
    clusters: BTreeMap<String, u16>,
}

impl Place {
    async fn start(manifests: &Manifests, gateway: &Gateway, version: &str) -> Result<Self> {
        let mut pods = Pods::prepare(manifests).await?;
        let mut bootstrap = Bootstrap((gateway.bootstrap)(manifests, pods.folder())?);
        for cluster in gateway.clusters.keys() {
            eds::tell(pods.folder(), cluster, &[])?;
        }
        bootstrap.0["node"] = json!({"id": "gateway", "cluster": "gateway"});
        let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
        bootstrap.0["static_resources"]["listeners"][0]["address"] = socket(address);
        bootstrap.0["admin"]["address"] = socket(([127, 0, 0, 1], free_port()?).into());
        // As the cluster's DNS would answer.
        for (priority, sidecar) in [0, 1].into_iter().enumerate() {
            let endpoints = &mut bootstrap.cluster("mooring")["load_assignment"]["endpoints"][priority];
            let endpoint = &mut endpoints["lb_endpoints"][0]["endpoint"]["address"];
            let name = text(&endpoint["socket_address"]["address"]);
            ensure!(name == format!("odoo-{sidecar}.odoo-pods.odoo.svc.cluster.local"), "{name}");
            *endpoint = socket((pods.ip(sidecar), 7070).into());
        }
        let program = tools::envoy_of_version(version)?;
        // As a Secret that was made from the sidecars' file.
        let token = format!("{TOKEN}\n");
        let environment: Vec<_> = gateway.variables.iter().map(|name| (name.as_str(), &*token)).collect();
        let envoy = Envoy::start_with(&program, &bootstrap, pods.folder(), 2, &environment).await?;
        pods.start(0).await?;
        pods.start(1).await?;
        let place = Self { pods, envoy, address, clusters: gateway.clusters.clone() };
        place.tell_endpoints().await?;
        Ok(place)
    }

    /// Tells Envoy of the pods that run, and waits until it finds them healthy and its filter knows them.
    async fn tell_endpoints(&self) -> Result<()> {
        for (cluster, port) in &self.clusters {
            let endpoints: Vec<SocketAddr> = self.pods.running.values().map(|pod| pod.port(*port)).collect();
            eds::tell(self.pods.folder(), cluster, &endpoints)?;
        }
        let pods = self.pods.running.len();
        for cluster in self.clusters.keys() {
            let stat = format!("cluster.{}.membership_healthy", cluster.replace('|', "\\|"));
            let healthy = async || self.envoy.stat(&stat).await.unwrap_or_default();
            wait_until("the pods are healthy", async || healthy().await == pods as u64).await?;
        }
        self.pods.wait_until_active().await?;
        self.wait_for_filter(pods).await
    }

    /// Waits until newcomers are sent to this many pods, and by the filter.
    async fn wait_for_filter(&self, pods: usize) -> Result<()> {
        let http = browser::http1();
        let unknown = async || self.envoy.stat("wasmcustom.mooring_requests_without_nodes").await;
        let nodes = async || -> Result<usize> {
            let (before, mut nodes) = (unknown().await?, Vec::new());
            for _ in 0..24 {
                nodes.push(self.stranger(&http).get("/web/static/x.css").await?.node().to_owned());
            }
            ensure!(unknown().await? == before, "Envoy chose");
            Ok(tally(nodes).len())
        };
        let all_used = async || nodes().await.is_ok_and(|found| found == pods);
        wait_until("every pod is used", all_used).await.with_context(|| self.envoy.process.printed())?;
        // Each of Envoy's threads looks at the filter's board once in 100 ms.
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(())
    }

    /// Whoever may look at Envoy's configuration finds no token in it.
    async fn the_token_is_not_shown(&self) -> Result<()> {
        let dump = browser::get(self.envoy.admin(), "/config_dump?include_eds").await?.text();
        ensure!(!dump.contains(TOKEN), "the token is in Envoy's config dump");
        ensure!(dump.contains("sidecar_token_env"), "the filter is not in the config dump");
        Ok(())
    }

    /// A browser that comes for the first time.
    fn stranger(&self, connections: &Connections) -> Browser {
        let mut browser = Browser::new(connections.clone(), self.address);
        browser.sid = Some(browser::random_sid());
        browser
    }

    /// Each of many browsers is on one node, through whichever connection it comes.
    async fn browsers_stick(&self) -> Result<()> {
        let pools = [browser::http1(), browser::http1(), browser::http2()];
        let nodes = async |mut browser: Browser| -> Result<String> {
            let mut nodes = Vec::new();
            for number in 0..6 {
                browser = browser.over(pools[number % pools.len()].clone());
                let answer = browser.get("/web/static/x.css").await?;
                ensure!(answer.status == 200, "status {}", answer.status);
                nodes.push(answer.node().to_owned());
            }
            let counts = tally(nodes);
            ensure!(counts.len() == 1, "a browser was on {counts:?}");
            counts.into_keys().next().context("no answer")
        };
        let browsers = stream::iter(0..BROWSERS).map(|_| nodes(self.stranger(&pools[0])));
        let homes: Vec<String> = browsers.buffer_unordered(16).try_collect().await?;
        let homes = tally(homes);
        ensure!(homes.len() == self.pods.running.len(), "not every pod has browsers: {homes:?}");
        Ok(())
    }

    async fn people(&self, from: usize, count: usize) -> Result<Vec<Person>> {
        let http = browser::http1();
        let mut people = Vec::new();
        for number in from..from + count {
            people.push(Person::log_in(self.stranger(&http), format!("user{number}")).await?);
        }
        Ok(people)
    }

    /// Waits until each session is where it is needed: standbys move some seconds after a pod came.
    async fn wait_for_copies(&self, people: &[Person]) -> Result<()> {
        let mut files = Vec::new();
        for person in people {
            let sid = person.browser.sid.as_deref().context("no session")?;
            for pod in holders(&self.pods, sid, &person.node)? {
                let sessions = self.pods.folder().join(pod).join("sessions");
                files.push(sessions.join(&sid[..2]).join(sid));
            }
        }
        wait_until("the sessions are carried", async || files.iter().all(|file| file.is_file())).await?;
        Ok(())
    }

    /// Forged headers choose nothing, and what Odoo is told comes from Envoy.
    async fn forged_headers_choose_nothing(&self, person: &mut Person) -> Result<()> {
        for pod in self.pods.running.values() {
            let (plain, encoded) = (pod.port(8069).to_string(), STANDARD.encode(pod.port(8069).to_string()));
            let forged = [
                ("x-mooring-upstream", encoded.as_str()),
                ("X-Mooring-Next", plain.as_str()),
                ("x-mooring-owner", pod.name.as_str()),
                ("x-forwarded-host", "evil.example.com"),
                ("x-forwarded-for", "203.0.113.1"),
            ];
            let answer = person.browser.request(Method::GET, "/odoo", &forged, "").await?;
            ensure!(answer.node() == person.node, "a header moved {} to {}", person.login, answer.node());
            let seen = answer.header("x-standin-seen");
            ensure!(["", "x-mooring-next"].contains(&seen), "Odoo was sent {seen}");
            let told = answer.header("x-standin-forwarded");
            ensure!(told.starts_with(&format!("127.0.0.1;{};", self.address)), "Odoo was told {told}");
            ensure!(!answer.headers.keys().any(|name| name.as_str().starts_with("x-mooring-")), "sent back");
        }
        Ok(())
    }

    /// What clients and balancers say is taken as envoy.yaml takes it.
    async fn stands_at_the_edge(&self) -> Result<()> {
        let mut stranger = self.stranger(&browser::http1());
        // Odoo makes images of what stands in a path, such as the address of a page.
        let path = "/standin/head/QR/https%3A%2F%2Fa.example//b";
        let names = ["x_forwarded_proto", "x-forwarded-host", "forwarded", "x-real-ip", "x-odoo-dbfilter"];
        let answer = stranger.request(Method::GET, path, &names.map(|name| (name, "forged")), "").await?;
        ensure!(answer.status == 200, "with an underscore: {}", answer.status);
        let arrived = answer.text();
        ensure!(arrived.contains(&format!("\"path\":\"{path}?\"")), "another path: {arrived}");
        ensure!(!arrived.contains("forged"), "Odoo was told {arrived}");
        let health = stranger.get("/mooring/health").await?;
        ensure!(health.status == 200 && health.node().is_empty(), "Odoo is asked for /mooring/health");
        Ok(())
    }
}

async fn all_work(people: &mut [Person]) -> Result<()> {
    for person in people {
        person.works().await?;
    }
    Ok(())
}

/// The pods that are to have a session's files: its owner's and its standby's.
fn holders(pods: &Pods, sid: &str, owner: &str) -> Result<Vec<String>> {
    let node = |pod: &Pod| {
        let (id, http) = (NodeId::new(&*pod.name)?, pod.port(8069));
        let state = NodeState::Active;
        Ok(Node { id, http, gevent: None, weight: 1, state, full: false, carries: true })
    };
    let members = Membership::new(pods.running.values().map(node).collect::<Result<_>>()?)?;
    let key = SessionKey::of_session_id(sid.as_bytes());
    let places = plan(&members, key, Some(NodeId::new(owner)?.seed())).places;
    Ok(places.into_iter().take(2).map(|place| members.nodes()[place].id.to_string()).collect())
}

/// Those who were on `gone` go on elsewhere, logged in, if need be at their `standbys`; all others stay.
async fn only_they_move(
    people: &mut [Person],
    gone: &str,
    standbys: Option<&HashMap<String, String>>,
) -> Result<usize> {
    let mut moved = 0;
    for person in people {
        if person.node == gone {
            let answer = person.browser.get("/odoo").await?;
            ensure!(answer.status == 200, "{} got {}", person.login, answer.status);
            ensure!(answer.login() == person.login, "{} is logged in as {:?}", person.login, answer.login());
            let standby = standbys.and_then(|standbys| standbys.get(&person.login));
            let is_right = standby.map_or(answer.node() != gone, |standby| answer.node() == standby);
            ensure!(is_right, "{} is on {}, the standby is {standby:?}", person.login, answer.node());
            person.node = answer.node().to_owned();
            moved += 1;
        }
        person.works().await?;
    }
    ensure!(moved > 0, "nobody was on {gone}");
    Ok(moved)
}

/// Everything that is promised, one after the other.
pub(crate) async fn tell(manifests: &Manifests, gateway: &Gateway, version: &str) -> Result<()> {
    let mut place = Place::start(manifests, gateway, version).await?;
    place.stands_at_the_edge().await?;
    place.the_token_is_not_shown().await?;
    place.browsers_stick().await?;
    let mut people = place.people(0, PEOPLE).await?;
    for person in &mut people {
        let echo = person.browser.websocket("hi").await?;
        ensure!(echo == format!("{}:{}:hi", person.node, person.login), "{} hears {echo}", person.node);
    }
    place.forged_headers_choose_nothing(&mut people[0]).await?;

    // A pod joins: nobody moves, newcomers use it.
    place.pods.start(2).await?;
    place.tell_endpoints().await?;
    all_work(&mut people).await.context("odoo-2 joins")?;
    let mut newcomers = place.people(PEOPLE, 30).await?;
    ensure!(tally(newcomers.iter().map(|person| &person.node)).len() == 3, "the new pod has nobody");
    people.append(&mut newcomers);

    // A pod is replaced, as in a rolling update: its people are elsewhere before it ends.
    place.pods.delete("odoo-2").await?;
    place.tell_endpoints().await?;
    let replaced = only_they_move(&mut people, "odoo-2", None).await.context("odoo-2 is deleted")?;
    place.pods.start(2).await?;
    place.tell_endpoints().await?;
    all_work(&mut people).await.context("odoo-2 is back")?;

    // A pod dies, and with it the sidecar that answered the filter.
    people.append(&mut place.people(PEOPLE + 30, 20).await?);
    place.wait_for_copies(&people).await?;
    let standby = |person: &Person| {
        let sid = person.browser.sid.as_deref().unwrap_or_default();
        let holders = holders(&place.pods, sid, &person.node)?;
        Ok((person.login.clone(), holders.last().context("no standby")?.clone()))
    };
    let standbys = people.iter().map(standby).collect::<Result<HashMap<_, _>>>()?;
    place.pods.kill("odoo-0")?;
    let next = if gateway.has_standby {
        only_they_move(&mut people, "odoo-0", Some(&standbys)).await.context("odoo-0 is killed")?
    } else {
        for person in &mut people {
            let answer = person.browser.get("/web/static/x.css").await?;
            ensure!(answer.status == 200, "{} got {}", person.login, answer.status);
            ensure!((answer.node() == person.node) == (person.node != "odoo-0"), "{} moved", person.login);
        }
        people.retain(|person| person.node != "odoo-0");
        0
    };
    let known = place.envoy.stat("wasmcustom.mooring_sidecar_polls").await?;
    let polls = async || place.envoy.stat("wasmcustom.mooring_sidecar_polls").await.unwrap_or_default();
    wait_until("odoo-1's sidecar is asked instead", async || polls().await > known).await?;
    all_work(&mut people).await?;
    place.pods.check_logs()?;
    println!(
        "Envoy {version}: {BROWSERS} browsers and {} people stay; {replaced} were moved, {next} were failed over",
        people.len()
    );
    Ok(())
}
