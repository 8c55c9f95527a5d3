//! The module in two nodes of a real Odoo, each with a sidecar, on one Redis; and two nodes without it, on the
//! same database.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use harness::{
    browser,
    envoy::Endpoint,
    odoo::{Odoo, Person, Tree},
    orm_cache::{CacheSidecar, SECRET},
    process::free_port,
    redis_servers::Server,
    say,
};
use hyper::Method;
use serde_json::{Value, json};

const SHARING: [usize; 2] = [0, 1];
const ALONE: [usize; 2] = [2, 3];
const WORKERS: u32 = 4;

struct World {
    odoo: Odoo,
    endpoints: Vec<Endpoint>,
    sidecars: Vec<CacheSidecar>,
    _redis: Server,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start(tree: Tree) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let redis = Server::start(folder.path(), "").await?;
        let mut odoo = Odoo::install(tree, 4).await?;
        let mut sidecars = Vec::new();
        for place in SHARING {
            let own = folder.path().join(format!("sidecar-{place}"));
            let sidecar = CacheSidecar::start(&own, Some((redis.address, SECRET)), &[]).await?;
            odoo.cache_sockets[place] = Some(sidecar.socket.clone());
            sidecars.push(sidecar);
        }
        let place = || -> Result<SocketAddr> { Ok(([127, 0, 0, 1], free_port()?).into()) };
        let endpoints =
            (0..4).map(|_| Ok(Endpoint { http: place()?, gevent: place()? })).collect::<Result<_>>()?;
        let mut world = Self { odoo, endpoints, sidecars, _redis: redis, _folder: folder };
        world.start_nodes(WORKERS).await?;
        Ok(world)
    }

    async fn start_nodes(&mut self, workers: u32) -> Result<()> {
        self.odoo.workers = workers;
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            self.odoo.start(place, *endpoint).await?;
        }
        for place in SHARING {
            let log = self.odoo.logged(place);
            ensure!(log.contains("the ORM caches are shared through"), "{log}");
        }
        Ok(())
    }

    async fn stop_nodes(&mut self) -> Result<()> {
        for place in 0..4 {
            self.odoo.stop(place, rustix::process::Signal::TERM).await?;
        }
        Ok(())
    }

    /// Calls a method as the administrator.
    async fn call(&self, place: usize, model: &str, method: &str, args: Value, more: Value) -> Result<Value> {
        let args = json!(["mooring", 2, "admin", model, method, args, more]);
        let params = json!({"service": "object", "method": "execute_kw", "args": args});
        let body = json!({"jsonrpc": "2.0", "method": "call", "id": 1, "params": params}).to_string();
        let mut browser = browser::Browser::new(browser::http1(), self.endpoints[place].http);
        let json = [("content-type", "application/json")];
        let answer = browser.request(Method::POST, "/jsonrpc", &json, body).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// The result of a call that succeeds.
    async fn result(&self, place: usize, model: &str, method: &str, args: Value) -> Result<Value> {
        let mut answer = self.call(place, model, method, args, json!({})).await?;
        ensure!(answer.get("result").is_some(), "{model}.{method} answered {answer}");
        Ok(answer["result"].take())
    }

    /// The arguments of `get_views`.
    fn views(&self) -> Value {
        let list = if self.odoo.version() < 18 { "tree" } else { "list" };
        json!([[[false, list], [false, "form"], [false, "search"]]])
    }

    /// What many methods with caches return.
    async fn values(&self, place: usize) -> Result<Vec<Value>> {
        let mut values = Vec::new();
        for model in ["res.partner", "res.users", "ir.ui.view", "mail.message", "res.currency"] {
            values.push(self.result(place, model, "get_views", self.views()).await?);
            values.push(self.result(place, model, "fields_get", json!([])).await?);
        }
        values.push(self.result(place, "ir.ui.menu", "load_menus", json!([false])).await?);
        values.push(self.result(place, "ir.ui.menu", "load_menus_root", json!([])).await?);
        values.push(self.result(place, "ir.model.fields", "get_field_string", json!(["res.partner"])).await?);
        Ok(values)
    }

    async fn menu(&self, place: usize) -> Result<String> {
        Ok(self.result(place, "ir.ui.menu", "load_menus", json!([false])).await?.to_string())
    }
}

/// How often each call was computed at a cost for which it is surely shared.
fn times(calls: Vec<(String, f64)>) -> BTreeMap<String, usize> {
    let mut times = BTreeMap::new();
    let is_shared = |call: &str| SHARED.iter().any(|name| call.contains(name));
    for (call, _) in calls.into_iter().filter(|(call, took)| *took > 3.0 && is_shared(call)) {
        *times.entry(call).or_insert(0) += 1;
    }
    times
}

/// Those that are shared and cost enough on most machines.
const SHARED: [&str; 4] =
    ["_get_asset_paths ", "_get_view_cache ", "load_menus ", "_generate_asset_links_cache "];

#[tokio::test]
async fn two_nodes_share_what_they_compute() -> Result<()> {
    let Some(tree) = Tree::from_environment()? else {
        say("SKIPPED: MOORING_ODOO names no Odoo");
        return Ok(());
    };
    let mut world = World::start(tree).await?;
    values_are_equal(&world).await?;
    writes_are_seen_and_rollbacks_are_not(&world).await?;
    a_storm(&world).await?;
    world.stop_nodes().await?;
    world.start_nodes(1).await?;
    cold_pages(&world).await?;
    cold_calls(&world).await?;
    after_a_restart(&mut world).await?;
    for place in SHARING {
        let log = world.odoo.logged(place);
        ensure!(!log.contains("is not shared"), "{log}");
    }
    let report = world.sidecars[0].report()?;
    say(&format!(
        "real Odoo: {} values in {} KB",
        report["values"],
        report["bytes"].as_u64().unwrap_or(0) >> 10
    ));
    Ok(())
}

async fn values_are_equal(world: &World) -> Result<()> {
    world.odoo.invalidate(&[])?;
    let alone = world.values(ALONE[0]).await?;
    let first = world.values(SHARING[0]).await?;
    let second = world.values(SHARING[1]).await?;
    for (number, value) in alone.iter().enumerate() {
        ensure!(
            *value == first[number],
            "value {number} is computed differently:\n{value}\n{}",
            first[number]
        );
        ensure!(
            *value == second[number],
            "value {number} was shared as another:\n{value}\n{}",
            second[number]
        );
    }
    let found: u64 = world.sidecars[1].report()?["methods"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| row["hits"].as_u64().unwrap_or(0) + row["shared"].as_u64().unwrap_or(0))
        .sum();
    ensure!(found > 5, "only {found} values were found: {}", world.sidecars[1].report()?);
    say(&format!(
        "real Odoo: {} values are equal with and without the cache; {found} were found",
        alone.len()
    ));
    Ok(())
}

async fn writes_are_seen_and_rollbacks_are_not(world: &World) -> Result<()> {
    let [a, b] = SHARING;
    let menus = world.result(a, "ir.ui.menu", "search", json!([[["parent_id", "=", false]]])).await?;
    let menu = menus[0].clone();
    for number in 0..20 {
        let (writer, name) = (SHARING[number % 2], format!("Menu number {number}."));
        world.menu(b).await?;
        let write = json!([[menu], {"name": name}]);
        world.result(writer, "ir.ui.menu", "write", write).await?;
        for place in [b, a, ALONE[0]] {
            ensure!(world.menu(place).await?.contains(&name), "write {number} is not seen at {place}");
        }
    }
    let model = json!([[["model", "=", "res.partner"]]]);
    let model = world.result(a, "ir.model", "search", model).await?;
    // Writes, computes what depends on it, and fails; with and without the caches being cleared before.
    for (number, clear) in [true, false, true, false, true, false].into_iter().enumerate() {
        let sql = format!(
            "env.cr.execute('''UPDATE ir_ui_menu SET name = '{{\"en_US\": \"NEVER {number}\"}}' WHERE id = {menu}''')"
        );
        let write = format!("env['ir.ui.menu'].browse({menu}).write({{'name': 'NEVER {number}'}})");
        let code = format!(
            "{}\nenv['ir.ui.menu'].load_menus(False)\nraise UserError('no')",
            if clear { write } else { sql }
        );
        let action = json!([{"name": "x", "model_id": model[0], "state": "code", "code": code}]);
        let action = world.result(a, "ir.actions.server", "create", action).await?;
        world.odoo.invalidate(&[])?;
        let answer = world.call(a, "ir.actions.server", "run", json!([[action]]), json!({})).await?;
        ensure!(answer.to_string().contains("UserError"), "{answer}");
        for place in [b, b, b, b, b, b] {
            let menu = world.menu(place).await?;
            ensure!(!menu.contains("NEVER"), "a write that was rolled back is seen at {place}");
        }
    }
    say("real Odoo: 20 writes were seen at the other node at once, 6 that were rolled back never");
    Ok(())
}

/// Everybody asks for everything, from all workers at once, just after an invalidation.
async fn a_storm(world: &World) -> Result<()> {
    for (number, nodes) in [SHARING, ALONE].into_iter().enumerate() {
        let how = ["with Mooring", "without"][number];
        for _ in 0..3 {
            world.odoo.invalidate(&[])?;
            world.odoo.computed(&nodes)?;
            let everybody = (0..WORKERS as usize * 6).map(|turn| world.values(nodes[turn % 2]));
            try_join_all(everybody).await?;
            let times = times(world.odoo.computed(&nodes)?);
            let (values, sum) = (times.len(), times.values().sum::<usize>());
            let (call, most) =
                times.iter().max_by_key(|(_, times)| **times).context("nothing was computed")?;
            say(&format!(
                "real Odoo: a storm over 2 nodes with {WORKERS} workers each, {how}: {values} values, computed {sum} \
                 times; one of them {most} times"
            ));
            let (shared, alone) = (*most <= 2 && sum * 2 <= values * 3, sum > values * 5);
            ensure!(if number == 0 { shared } else { alone }, "{how}: {most} times {call}");
        }
    }
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

async fn timed(person: &mut Person, path: &str) -> Result<f64> {
    let began = Instant::now();
    let answer = person.get(path).await?;
    ensure!(answer.status == 200, "{path} got {}", answer.status);
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Times at the first and the second worker, and at a warm one.
type Times = [f64; 3];

/// With Mooring and without.
type Both = [Times; 2];

/// Somebody logged in at each node.
async fn people(world: &World) -> Result<Vec<Person>> {
    let mut people = Vec::new();
    for place in 0..4 {
        let mut person =
            Person::new(&browser::http1(), world.endpoints[place].http, format!("203.0.113.{place}"));
        person.log_in().await?;
        people.push(person);
    }
    Ok(people)
}

fn tell(what: &str, both: &Both) {
    for (how, [first, second, warm]) in [("with Mooring", both[0]), ("without", both[1])] {
        say(&format!(
            "real Odoo: {what}, {how}: first worker {first:.1} ms, second {second:.1} ms, warm {warm:.1} ms (second / \
             warm: {:.1})",
            second / warm
        ));
    }
}

/// A page at a worker whose caches were invalidated, after another node has served it; then once more.
async fn cold_pages(world: &World) -> Result<()> {
    let (page, mut people) = (world.odoo.page(), people(world).await?);
    // Routing maps, which cannot be shared, are seldom invalidated.
    let kinds: [(&str, &[&str]); 2] = [("all caches", &[]), ("all but routing", &["routing"])];
    for (what, except) in kinds {
        let mut times: [[Vec<f64>; 3]; 2] = Default::default();
        for _ in 0..9 {
            for (with, nodes) in [SHARING, ALONE].into_iter().enumerate() {
                world.odoo.invalidate(except)?;
                for (turn, place) in nodes.into_iter().enumerate() {
                    times[with][turn].push(timed(&mut people[place], page).await?);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                times[with][2].push(timed(&mut people[nodes[1]], page).await?);
            }
        }
        let both = times.map(|kinds| kinds.map(median));
        tell(&format!("{page} after {what} were invalidated"), &both);
        ensure!(both[0][1] < both[1][1], "the second worker gains nothing: {both:?}");
    }
    Ok(())
}

/// The same for calls as a browser makes them, all caches invalidated before each.
async fn cold_calls(world: &World) -> Result<()> {
    let mut people = people(world).await?;
    let calls = [
        ("res.partner", "get_views", world.views()),
        ("res.partner", "fields_get", json!([])),
        ("ir.ui.menu", "load_menus", json!([false])),
    ];
    for (model, method, args) in calls {
        let mut times: [[Vec<f64>; 3]; 2] = Default::default();
        for _ in 0..9 {
            for (with, nodes) in [SHARING, ALONE].into_iter().enumerate() {
                world.odoo.invalidate(&[])?;
                for (turn, place) in [(0, nodes[0]), (1, nodes[1]), (2, nodes[1])] {
                    let params = json!({"model": model, "method": method, "args": args, "kwargs": {}});
                    let body = json!({"jsonrpc": "2.0", "method": "call", "params": params}).to_string();
                    let path = format!("/web/dataset/call_kw/{model}/{method}");
                    let began = Instant::now();
                    let answer = people[place].post(&path, "application/json", body).await?;
                    times[with][turn].push(began.elapsed().as_secs_f64() * 1e3);
                    ensure!(answer.text().contains("\"result\""), "{}", answer.text());
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        tell(&format!("{model}.{method} after an invalidation"), &times.map(|kinds| kinds.map(median)));
    }
    Ok(())
}

/// The first page of nodes that were restarted; the sidecars were not, and know what it takes.
async fn after_a_restart(world: &mut World) -> Result<()> {
    let mut times: [[Vec<f64>; 3]; 2] = Default::default();
    let (page, mut people) = (world.odoo.page(), people(world).await?);
    // Twice: their first page has Odoo greet them, which writes, so that nothing of it is published.
    for place in [0, 1, 2, 3, 0, 1, 2, 3] {
        timed(&mut people[place], page).await?;
    }
    for _ in 0..3 {
        world.stop_nodes().await?;
        world.start_nodes(1).await?;
        for (with, nodes) in [SHARING, ALONE].into_iter().enumerate() {
            for (turn, place) in [(0, nodes[0]), (1, nodes[1]), (2, nodes[1])] {
                times[with][turn].push(timed(&mut people[place], page).await?);
            }
        }
    }
    tell("the first page after a restart", &times.map(|kinds| kinds.map(median)));
    Ok(())
}
