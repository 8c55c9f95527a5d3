//! `mooring doctor` finds what is wrong, one thing at a time, and nothing in a healthy stack.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    browser,
    envoy::{Bootstrap, socket},
    fake_node::FakeNode,
    process::{Process, free_port, wait_until},
    program,
    stack::{Options, Stack},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A healthy odoo.conf of a node whose data_dir is `data`.
fn conf(node: &harness::node::Node, data: &Path) -> String {
    format!(
        "[options]\nproxy_mode = True\nworkers = 2\nhttp_port = {}\ngevent_port = {}\ndata_dir = {}\n\
         max_cron_threads = 0\ndb_host = postgres\nlist_db = False\nadmin_passwd = b1c5dd\n",
        node.endpoint.http.port(),
        node.endpoint.gevent.port(),
        data.display(),
    )
}

/// A stack with Odoo's configuration files, as they should be.
struct Clinic {
    stack: Stack,
    folder: TempDir,
    envoy: String,
}

impl Clinic {
    async fn open(options: Options, change: impl FnOnce(&mut Bootstrap)) -> Result<Self> {
        let stack = Stack::start_with(options, change).await?;
        let folder = tempfile::tempdir()?;
        let filestore = folder.path().join("filestore");
        fs::create_dir_all(&filestore)?;
        for node in &stack.nodes {
            let data = folder.path().join(&node.id);
            fs::create_dir_all(data.join("sessions"))?;
            std::os::unix::fs::symlink(&filestore, data.join("filestore"))?;
            fs::write(folder.path().join(format!("{}.conf", node.id)), conf(node, &data))?;
        }
        let envoy = stack.envoy.admin().to_string();
        Ok(Self { stack, folder, envoy })
    }

    /// The same as it is shipped, once Envoy's health checks have passed: that takes a moment.
    async fn well(options: Options) -> Result<Self> {
        let clinic = Self::open(options, |_| {}).await?;
        let servers = clinic.stack.nodes.len() as u64;
        let healthy = async |cluster: &str| {
            clinic
                .stack
                .envoy
                .stat(&format!("cluster.{cluster}.membership_healthy"))
                .await
                .unwrap_or_default()
        };
        let all = async || healthy("odoo").await == servers && healthy("odoo_gevent").await == servers;
        wait_until("every server passes Envoy's health checks", all).await?;
        Ok(clinic)
    }

    fn conf(&self, id: &str) -> PathBuf {
        self.folder.path().join(format!("{id}.conf"))
    }

    /// Changes a line of a node's file for as long as the doctor looks; the names of what it finds.
    async fn with(&self, id: &str, line: &str, other: &str) -> Result<Vec<String>> {
        let healthy = fs::read_to_string(self.conf(id))?;
        ensure!(healthy.contains(line), "no {line:?} in {healthy}");
        fs::write(self.conf(id), healthy.replace(line, other))?;
        let found = self.examine().await?.1;
        fs::write(self.conf(id), healthy)?;
        Ok(found)
    }

    /// The exit status, and the names of what is found beside notes.
    async fn examine(&self) -> Result<(Option<i32>, Vec<String>)> {
        let (status, report) = self.examine_all().await?;
        Ok((status, names(findings(&report).iter().filter(|finding| finding["severity"] != "note"))))
    }

    /// The exit status, and all that is said.
    async fn examine_all(&self) -> Result<(Option<i32>, Value)> {
        let mut arguments = self.sidecar();
        arguments.extend(["--envoy".to_owned(), self.envoy.clone()]);
        for node in &self.stack.nodes {
            arguments.push(format!("--odoo-conf={}={}", node.id, self.conf(&node.id).display()));
        }
        doctor(arguments).await
    }

    fn sidecar(&self) -> Vec<String> {
        vec!["--sidecar".to_owned(), self.stack.sidecar_address.to_string()]
    }
}

/// The names of what was found.
fn names<'a>(found: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
    found.into_iter().filter_map(|finding| finding["name"].as_str().map(str::to_owned)).collect()
}

/// What was found in a report.
fn findings(report: &Value) -> &[Value] {
    report["findings"].as_array().map_or(&[], Vec::as_slice)
}

/// What `mooring doctor` with these arguments says, and its exit status.
async fn doctor(arguments: Vec<String>) -> Result<(Option<i32>, Value)> {
    let mut command = Command::new(program("mooring"));
    command.args(["doctor", "--json"]).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
    for finding in findings(&report) {
        for field in ["name", "about", "problem", "remedy"] {
            ensure!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        }
    }
    Ok((output.status.code(), report))
}

/// An address on which nobody listens.
fn local() -> Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, free_port()?).into())
}

fn carried() -> Options {
    let sidecar_args = ["--probe-interval-ms", "200"].map(str::to_owned).to_vec();
    Options { carry: true, sidecar_args, ..Options::default() }
}

#[tokio::test]
async fn a_healthy_stack_has_nothing_and_each_ill_is_found() -> Result<()> {
    let mut clinic = Clinic::well(carried()).await?;
    let (status, report) = clinic.examine_all().await?;
    ensure!(status == Some(0) && findings(&report).is_empty(), "{report}");
    let said = report["looked_at"].to_string();
    for part in [
        "it is ready",
        "odoo-3: that Odoo answers",
        "odoo-2.conf",
        "side by side",
        "filters in odoo",
        "clusters",
    ] {
        ensure!(said.contains(part), "{part} is not in {said}");
    }
    ensure!(report["not_looked_at"].to_string().contains("command line"), "{report}");

    let data = |id: &str| clinic.folder.path().join(id).display().to_string();
    let (own, other) = (format!("data_dir = {}", data("odoo-2")), format!("data_dir = {}", data("odoo-1")));
    let lonely = clinic.folder.path().join("lonely");
    for part in ["sessions", "filestore"] {
        fs::create_dir_all(lonely.join(part))?;
    }
    let apart = format!("data_dir = {}", lonely.display());
    for (line, instead, expected) in [
        ("workers = 2", "workers = 0", vec!["no-workers"]),
        ("workers = 2", "workers = 2 ; enough", vec!["inline-comment"]),
        ("workers = 2", "workers = {{ workers }}", vec!["templated-value"]),
        ("workers = 2", "workers = 2\nlimit_time_real = 721", vec!["time-limit-beyond-envoy"]),
        ("workers = 2", "workers = 2\nx_sendfile = True", vec!["x-sendfile"]),
        (
            "workers = 2",
            "workers = 2\nserver_wide_modules = base,web,session_redis",
            vec!["session-stores-mixed"],
        ),
        ("list_db = False\n", "", vec!["database-manager-open"]),
        ("admin_passwd = b1c5dd", "admin_passwd = admin", vec!["weak-master-password"]),
        ("proxy_mode = True\n", "", vec!["no-proxy-mode"]),
        ("[options]", "[option]", vec!["no-options-section"]),
        ("gevent_port = ", "gevent_port = 1", vec!["other-port"]),
        (&own, &other, vec!["sessions-shared"]),
        (&own, &apart, vec!["filestore-separate"]),
        (&own, "", vec!["no-data-dir"]),
        ("db_host = postgres", "db_host = elsewhere", vec!["other-database"]),
    ] {
        let found = clinic.with("odoo-2", line, instead).await?;
        ensure!(found == expected, "{instead:?}: {found:?}");
    }

    let envoy = std::mem::replace(&mut clinic.envoy, "127.0.0.1:1".into());
    ensure!(clinic.examine().await? == (Some(2), vec!["envoy-absent".to_owned()]));
    clinic.envoy = envoy;
    clinic.stack.kill_node("odoo-3");
    clinic.stack.wait_for_state("odoo-3", "down").await?;
    let (status, found) = clinic.examine().await?;
    ensure!(status == Some(2) && found == ["node-down"], "{found:?}");
    let place = clinic.stack.nodes.len() - 1;
    clinic.stack.start_node(place).await?;
    clinic.stack.wait_for_state("odoo-3", "active").await?;
    drop(clinic.stack.sidecar.take());
    let (status, found) = clinic.examine().await?;
    ensure!(status == Some(2) && found == ["sidecar-absent"], "{found:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_only_worth_knowing_is_a_note() -> Result<()> {
    let clinic = Clinic::well(carried()).await?;
    let (status, report) = doctor(clinic.sidecar()).await?;
    ensure!(status == Some(0) && findings(&report).is_empty(), "{report}");
    let unseen = report["not_looked_at"].to_string();
    ensure!(unseen.contains("--envoy") && unseen.contains("--odoo-conf"), "{unseen}");

    fs::remove_dir(clinic.folder.path().join("odoo-2/sessions"))?;
    let drain = |what: &'static str| {
        let mut command = Command::new(program("mooring"));
        command.args([what, "odoo-3"]).args(clinic.sidecar());
        tokio::task::spawn_blocking(move || command.status())
    };
    ensure!(drain("drain").await??.success());
    clinic.stack.wait_for_state("odoo-3", "draining").await?;
    let (status, report) = clinic.examine_all().await?;
    ensure!(findings(&report).iter().all(|finding| finding["severity"] == "note"), "{report}");
    let mut found = names(findings(&report));
    found.sort();
    ensure!(status == Some(0) && found == ["no-sessions-directory", "node-drained"], "{found:?}");
    ensure!(drain("undrain").await??.success());
    Ok(())
}

#[tokio::test]
async fn a_sidecar_without_its_store_a_node_without_a_gevent_port_and_one_that_is_not_odoo_are_found()
-> Result<()> {
    let (folder, address, store, stranger) =
        (tempfile::tempdir()?, local()?, local()?, FakeNode::saying(&[200], "It works!").await?);
    let mut serve = Command::new(program("mooring"));
    serve.args(["serve", "--listen", &address.to_string(), "--store", &format!("redis://{store}/0")]);
    serve.args(["--node", "odoo-1=127.0.0.1:1", "--node", "odoo-2=127.0.0.1:2,gevent=127.0.0.1:3"]);
    // To which the sidecar cannot expect a certain answer.
    serve.args(["--node", &format!("{},gevent=127.0.0.1:4", stranger.spec("odoo-3")), "--probe-path", "/"]);
    let mut sidecar = Process::start("mooring", serve, &folder.path().join("mooring.log"))?;
    sidecar.wait(Duration::from_secs(10), async || browser::get(address, "/healthz").await.ok()).await?;
    let (status, report) = doctor(vec!["--sidecar".to_owned(), address.to_string()]).await?;
    ensure!(status == Some(2), "{report}");
    ensure!(findings(&report).iter().any(|it| it["name"] == "store-fails"), "{report}");
    for (name, about) in [("no-gevent", "odoo-1"), ("foreign-server", "odoo-3")] {
        let found = findings(&report).iter().filter(|it| it["name"] == name);
        ensure!(found.map(|it| it["about"].clone()).collect::<Vec<_>>() == [about], "{report}");
    }
    Ok(())
}

/// A change of Envoy's configuration, and what is to be found.
type Ill = (fn(&mut Bootstrap), &'static str);

#[tokio::test]
async fn an_envoy_without_what_it_needs_is_found() -> Result<()> {
    let ills: [Ill; 4] = [
        (|bootstrap| bootstrap.http_filters().retain(|filter| filter["name"] != "mooring"), "no-filter"),
        (|bootstrap| bootstrap.wasm()["failure_policy"] = json!("FAIL_OPEN"), "no-reload"),
        (
            |bootstrap| {
                let hosts = &mut bootstrap.cluster("odoo")["load_assignment"]["endpoints"][0]["lb_endpoints"];
                hosts.as_array_mut().expect("a list").truncate(2);
            },
            "envoy-unknown-node",
        ),
        (
            |bootstrap| {
                let check = &mut bootstrap.cluster("odoo_gevent")["health_checks"][0];
                check["http_health_check"]["path"] = json!("/nowhere");
                check["interval"] = json!("0.1s");
            },
            "envoy-unreachable-node",
        ),
    ];
    for (change, name) in ills {
        let clinic = Clinic::open(carried(), change).await?;
        let found = async || {
            clinic
                .examine()
                .await
                .is_ok_and(|(status, found)| status == Some(2) && found.iter().all(|it| it == name))
        };
        // Health checks take a moment.
        wait_until(name, found).await?;
    }
    Ok(())
}

#[tokio::test]
async fn listeners_in_which_the_filter_is_not_obeyed_or_not_there_are_found() -> Result<()> {
    let clinic = Clinic::open(carried(), |bootstrap| {
        for change in [
            (|filters, filter| filters.swap(filter, filter + 1)) as fn(&mut Vec<Value>, usize),
            |filters, filter| drop(filters.remove(filter + 1)),
            |filters, filter| drop(filters.drain(filter..filter + 2)),
        ] {
            let mut other = Bootstrap(bootstrap.0.clone());
            let filters = other.http_filters();
            let filter = filters.iter().position(|filter| filter["name"] == "mooring").expect("the filter");
            change(filters, filter);
            let mut listener = other.0["static_resources"]["listeners"][0].take();
            let port = free_port().expect("a free port");
            listener["name"] = json!(format!("on-{port}"));
            listener["address"] = socket((Ipv4Addr::LOCALHOST, port).into());
            bootstrap.0["static_resources"]["listeners"].as_array_mut().expect("a list").push(listener);
        }
    })
    .await?;
    let found = async || {
        clinic.examine().await.is_ok_and(|(status, mut found)| {
            found.sort();
            status == Some(2) && found == ["filter-order", "listener-without-filter", "no-stateful-session"]
        })
    };
    // Health checks take a moment.
    wait_until("each listener's own fault is found", found).await?;
    Ok(())
}

#[tokio::test]
async fn whatever_a_configuration_file_is_the_doctor_says_what_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let real = "[options]\n; The master password\nadmin_passwd = hunter2\ndb_host = False\nproxy_mode = ${PROXY}\n\
                xmlrpc_port = 8070\nworkers = 4   ; (2 * cores)\n";
    let large = vec![b'x'; 50 << 20];
    let files: [(&str, &[u8], &[&str]); 5] = [
        ("real", real.as_bytes(), &["inline-comment", "templated-value"]),
        ("twice", b"[options]\nadmin_passwd = hunter2\nadmin_passwd = hunter2\n", &["conf-refused"]),
        ("latin", b"[options]\r\nemail_from = Jos\xE9\r\n", &["conf-refused"]),
        ("binary", b"\x7FELF\0\0\0\xFF", &["conf-unreadable"]),
        ("large", &large, &["conf-unreadable"]),
    ];
    for (name, content, expected) in files {
        fs::write(folder.path().join(name), content)?;
        let output = Command::new(program("mooring"))
            .args(["doctor", "--json", "--sidecar", &local()?.to_string()])
            // As seen from there.
            .arg(format!("--odoo-conf=odoo-1=./{name}"))
            .current_dir(folder.path())
            .output()?;
        ensure!(output.status.code() == Some(2), "{name}: {output:?}");
        let said = String::from_utf8(output.stdout)?;
        let found = names(findings(&serde_json::from_str(&said)?));
        ensure!(expected.iter().all(|name| found.iter().any(|it| it == name)), "{name}: {said}");
        ensure!(
            !said.contains("hunter2") && found.first().is_some_and(|it| it == "sidecar-absent"),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn one_server_whose_sessions_stay_where_they_are_is_found() -> Result<()> {
    let mut clinic = Clinic::well(Options { nodes: 1, running: 1, ..Options::default() }).await?;
    let (status, found) = clinic.examine().await?;
    ensure!(status == Some(1) && found == ["one-node", "not-carried"], "{found:?}");
    clinic.stack.nodes[0].id = "other".into();
    fs::copy(clinic.conf("odoo-1"), clinic.conf("other"))?;
    let (status, found) = clinic.examine().await?;
    ensure!(status == Some(2) && found.contains(&"unknown-node".to_owned()), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn jobs_that_also_run_where_people_are_served_are_found() -> Result<()> {
    let clinic = Clinic::well(carried()).await?;
    let mut cron = Command::new(program("mooring"));
    cron.args(["cron", "--lease-seconds", "2", "--stop-seconds", "1"]);
    cron.args(["--sidecar", &clinic.stack.sidecar_address.to_string(), "--", "sleep", "1000"]);
    let _cron = Process::start("mooring cron", cron, &clinic.folder.path().join("cron.log"))?;
    let nodes = async || browser::get(clinic.stack.sidecar_address, "/v1/nodes").await;
    let runs = async || nodes().await.is_ok_and(|nodes| nodes.text().contains("left_ms"));
    wait_until("somebody runs scheduled jobs", runs).await?;
    ensure!(clinic.examine().await? == (Some(0), vec![]));
    let found = clinic.with("odoo-2", "max_cron_threads = 0", "max_cron_threads = 2").await?;
    ensure!(found == ["cron-everywhere"], "{found:?}");
    Ok(())
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_found() -> Result<()> {
    let clinic = Clinic::well(Options { clock_offsets: vec![0, 60, -3], ..carried() }).await?;
    let (status, found) = clinic.examine().await?;
    ensure!(status == Some(1) && found == ["clock-skew"], "{found:?}");
    Ok(())
}
