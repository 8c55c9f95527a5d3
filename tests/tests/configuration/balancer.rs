//! Another proxy or balancer stands before Envoy.

use std::{fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{
    browser::{self, Browser, Method, tally},
    envoy::{Bootstrap, Envoy},
    process::{Process, free_port, wait_until},
    say,
    stack::{Options, Stack},
    tools,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// What to change behind one proxy that says X-Forwarded-Host.
fn behind_a_proxy(bootstrap: &mut Bootstrap) {
    let manager = bootstrap.connection_manager();
    manager["xff_num_trusted_hops"] = json!(1);
    let early = &mut manager["early_header_mutation_extensions"][0]["typed_config"]["mutations"];
    early.as_array_mut().expect("a list").retain(|header| header["remove"] != "x-forwarded-host");
}

/// The requests that the servers got.
async fn requests(stack: &Stack) -> Result<u64> {
    let mut requests = 0;
    for node in &stack.nodes {
        let state = browser::get(node.endpoint.http, "/standin/state").await?.text();
        let state: serde_json::Value = serde_json::from_str(&state)?;
        let routes = state["routes"].as_object().context("no counts")?;
        // Envoy and the sidecar ask for these all the time.
        let asked = routes.iter().filter(|(route, _)| !route.ends_with("/health"));
        requests += asked.filter_map(|(_, count)| count.as_u64()).sum::<u64>();
    }
    Ok(requests)
}

/// How balancers ask whether an Envoy serves.
const CHECKS: [&str; 6] = [
    // HAProxy's `option httpchk`.
    "OPTIONS / HTTP/1.0\r\n\r\n",
    // HAProxy's `option httpchk GET /mooring/health`.
    "GET /mooring/health HTTP/1.0\r\n\r\n",
    "HEAD /mooring/health HTTP/1.0\r\nConnection: close\r\n\r\n",
    // Load balancers of clouds, which ask by address.
    "GET /mooring/health HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nConnection: close\r\nUser-Agent: ELB-HealthChecker/2.0\r\n\r\n",
    "GET /mooring/health HTTP/1.1\r\nHost: odoo\r\nConnection: close\r\nCookie: session_id=x\r\n\r\n",
    "OPTIONS / HTTP/1.1\r\nHost: odoo\r\nConnection: close\r\n\r\n",
];

/// The head of the answer to a check. No longer than balancers do this waits for the end of the connection,
/// for which Envoy leaves them a second.
async fn ask(envoy: SocketAddr, check: &str) -> Result<String> {
    let mut stream = TcpStream::connect(envoy).await?;
    stream.write_all(check.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await? > 0 {}
    Ok(String::from_utf8_lossy(&head).to_lowercase())
}

async fn all_answer(envoy: SocketAddr, status: &str) -> Result<()> {
    for check in CHECKS {
        let answered = async || ask(envoy, check).await.is_ok_and(|head| head.contains(status));
        wait_until(&format!("{check:?} is answered with {status}"), answered).await?;
        let head = ask(envoy, check).await?;
        ensure!(!head.contains("set-cookie"), "{check:?} begins a session: {head}");
    }
    Ok(())
}

#[tokio::test]
async fn a_balancer_learns_whether_this_envoy_can_serve() -> Result<()> {
    let mut stack = Stack::start(Options { nodes: 2, running: 2, ..Options::default() }).await?;
    let (simple, simple_address) = stack.another_envoy("envoy-simple.yaml", |_| {}).await?;
    let before = requests(&stack).await?;
    for address in [stack.address, simple_address] {
        all_answer(address, "200").await?;
    }
    ensure!(requests(&stack).await? == before, "a check came to Odoo");
    // Old clients of Odoo's own are served as well.
    let answer = browser::raw(stack.address, b"GET /web/static/x.css HTTP/1.0\r\n\r\n").await?;
    ensure!(answer.contains("200 OK") && answer.contains("x-standin-node"), "{answer}");

    // Neither is Envoy out with the sidecar or with one server.
    stack.sidecar.take().context("a sidecar")?.kill();
    stack.kill_node("odoo-1");
    stack.wait_until_healthy(1).await?;
    all_answer(stack.address, "200").await?;
    // Taken out by its operator.
    for (command, status) in [("fail", "503"), ("ok", "200")] {
        let told = format!("POST /healthcheck/{command} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        browser::raw(simple.admin(), told.as_bytes()).await?;
        all_answer(simple_address, status).await?;
    }
    stack.kill_node("odoo-2");
    stack.wait_until_healthy(0).await?;
    all_answer(stack.address, "503").await
}

#[tokio::test]
async fn what_a_proxy_in_front_says_is_told_to_odoo() -> Result<()> {
    let stack = Stack::start_with(Options::default(), behind_a_proxy).await?;
    let told = async |path: &str, headers: &[(&str, &str)]| -> Result<String> {
        let mut browser = stack.browser(&browser::http1());
        let answer = browser.request(Method::GET, path, headers, "").await?;
        Ok(answer.header("x-standin-forwarded").to_owned())
    };
    let (client, host) = (("x-forwarded-for", "203.0.113.9"), ("x-forwarded-host", "erp.example.com"));
    for (said, expected) in [
        ("https", "https"),
        ("http", "http"),
        // Traefik's words for websockets; Odoo compares with the scheme of the page.
        ("wss", "https"),
        ("ws", "http"),
        ("http, wss", "https"),
        // Odoo takes the last.
        ("http, https", "https"),
        ("https, http", "http"),
    ] {
        let found = told("/websocket", &[client, host, ("x-forwarded-proto", said)]).await?;
        ensure!(found == format!("203.0.113.9;erp.example.com;{expected}"), "{said}: {found}");
    }
    let found = told("/web/static/x.css", &[client, host, ("x-forwarded-proto", "https")]).await?;
    ensure!(found == "203.0.113.9;erp.example.com;https", "{found}");
    // Without a word of the host it is the one that was asked for.
    let found = told("/web/static/x.css", &[client, ("x-forwarded-proto", "https")]).await?;
    ensure!(found == format!("203.0.113.9;{};https", stack.address), "{found}");

    // Azure adds ports, which Envoy does not read. The filter does, if told to.
    let (_azure, address) = stack
        .another_envoy("envoy.yaml", |bootstrap| {
            behind_a_proxy(bootstrap);
            let value = json!({"sidecar_cluster": "mooring", "trusted_proxies": 1});
            bootstrap.wasm()["configuration"]["value"] = value.to_string().into();
        })
        .await?;
    let mut homes = Vec::new();
    for client in 0..20 {
        let mut nodes = Vec::new();
        for port in [1_024, 40_000] {
            let said = format!("198.51.100.1, 203.0.113.{client}:{port}");
            let said = [("x-forwarded-for", said.as_str()), ("x-forwarded-proto", "https")];
            let mut browser = Browser::new(browser::http1(), address);
            let answer = browser.request(Method::GET, "/web/static/x.css", &said, "").await?;
            let told = answer.header("x-standin-forwarded");
            ensure!(told == format!("127.0.0.1;{address};https"), "Odoo is told {told}");
            nodes.push(answer.node().to_owned());
        }
        ensure!(nodes[0] == nodes[1], "203.0.113.{client} was on {nodes:?}");
        homes.append(&mut nodes);
    }
    ensure!(tally(homes).len() == 3, "twenty addresses are not spread");

    // A proxy on this host may come by a socket, which has no address.
    let socket = stack.folder().join("envoy.sock");
    let (_envoy, _) = stack
        .another_envoy("envoy.yaml", |bootstrap| {
            behind_a_proxy(bootstrap);
            bootstrap.0["static_resources"]["listeners"][0]["address"] = json!({"pipe": {"path": &socket}});
        })
        .await?;
    let mut stream = UnixStream::connect(&socket).await?;
    let request = "GET /web/static/x.css HTTP/1.1\r\nhost: odoo\r\nconnection: close\r\n\
        x-forwarded-for: 198.51.100.1, 203.0.113.9\r\nx-forwarded-proto: https\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(answer.contains("x-standin-forwarded: 203.0.113.9;odoo;https"), "{answer}");
    Ok(())
}

/// People work through a proxy before Envoy: each stays on a server, websocket included, and Odoo is told who
/// they are and by what name they came.
async fn people_work_through(proxy: SocketAddr, envoy: &Envoy) -> Result<()> {
    let http = browser::http1();
    let healthy = async || envoy.stat("cluster.odoo.membership_healthy").await.is_ok_and(|nodes| nodes == 3);
    wait_until("Envoy finds all servers healthy", healthy).await?;
    let served = async || browser::get(proxy, "/web/static/x.css").await.is_ok_and(|it| it.status == 200);
    wait_until("the proxy serves", served).await?;
    let mut nodes = Vec::new();
    for number in 0..12 {
        let mut browser = Browser::new(http.clone(), proxy);
        browser.headers = vec![("x-forwarded-for", "198.51.100.66".to_owned())];
        browser.sid = Some(browser::random_sid());
        let login = format!("user{number}");
        let node = browser.log_in(&login).await?.node().to_owned();
        for _ in 0..3 {
            let answer = browser.get("/odoo").await?;
            ensure!(answer.node() == node, "{login} left {node} for {}", answer.node());
            ensure!(answer.login() == login, "{login} is logged in as {:?}", answer.login());
            let told = answer.header("x-standin-forwarded");
            ensure!(told == format!("127.0.0.1;{proxy};http"), "Odoo is told {told}");
        }
        let echo = browser.websocket("hi").await?;
        ensure!(echo == format!("{node}:{login}:hi"), "{echo}");
        nodes.push(node);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(tally(nodes).len() > 1, "all on one server");
    Ok(())
}

/// Starts a proxy from the Debian package, with a configuration; none if it is not there.
fn start_proxy(name: &str, stack: &Stack, arguments: &[&str], text: &str) -> Result<Option<Process>> {
    let Some(program) = tools::on_path(name) else {
        say(&format!("SKIPPED: behind a real {name}; there is none on the PATH"));
        return Ok(None);
    };
    let configuration = stack.folder().join(format!("{name}.cfg"));
    fs::write(&configuration, text)?;
    let mut command = Command::new(program);
    command.args(arguments).arg(&configuration).current_dir(stack.folder());
    Ok(Some(Process::start(name, command, &stack.folder().join(format!("{name}.log")))?))
}

#[tokio::test]
async fn behind_haproxy_and_nginx_as_their_manuals_have_it() -> Result<()> {
    // One thread, which knows of each login as soon as it is answered.
    let options = Options { concurrency: 1, ..Options::default() };
    let stack = Stack::start_with(options, |bootstrap| {
        bootstrap.connection_manager()["xff_num_trusted_hops"] = json!(1);
    })
    .await?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    // HAProxy takes a server for healthy until a check fails: here after two, of five a second.
    let haproxy = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend users\n  bind {address}\n  default_backend mooring\n\
         backend mooring\n  option forwardfor\n  option httpchk\n  \
         server envoy {} check inter 200ms fall 2 rise 1\n",
        stack.address
    );
    if let Some(_haproxy) = start_proxy("haproxy", &stack, &["-db", "-f"], &haproxy)? {
        people_work_through(address, &stack.envoy).await.context("behind HAProxy")?;
    }

    // As Odoo's manual has it: HTTP/1.0 but for websockets, and the browser's host beside Host only.
    let (second, envoy) = stack.another_envoy("envoy.yaml", behind_a_proxy).await?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let folder = stack.folder().display().to_string();
    let nginx = format!(
        "daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;\n\
         events {{}}\nhttp {{\n  access_log off; client_body_temp_path {folder}/nginx-bodies;\n  \
         proxy_temp_path {folder}/nginx-answers; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;\n  \
         scgi_temp_path {folder}/s;\n  upstream odoo {{ server {envoy}; }}\n  server {{\n    listen {address};\n    \
         proxy_set_header X-Forwarded-Host $http_host;\n    \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n    \
         proxy_set_header X-Forwarded-Proto $scheme;\n    proxy_set_header X-Real-IP $remote_addr;\n    \
         location / {{ proxy_redirect off; proxy_pass http://odoo; }}\n    \
         location /websocket {{\n      proxy_http_version 1.1;\n      proxy_set_header Upgrade $http_upgrade;\n      \
         proxy_set_header Connection upgrade;\n      proxy_set_header X-Forwarded-Host $http_host;\n      \
         proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n      \
         proxy_set_header X-Forwarded-Proto $scheme;\n      proxy_pass http://odoo;\n    }}\n  }}\n}}\n"
    );
    if let Some(_nginx) = start_proxy("nginx", &stack, &["-c"], &nginx)? {
        people_work_through(address, &second).await.context("behind nginx")?;
    }
    Ok(())
}
