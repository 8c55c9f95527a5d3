//! Nodes by their names, while names fail and servers do not.

use super::*;

/// Names as a test has them: a sidecar that sees no others.
struct Names {
    hosts: std::path::PathBuf,
    switch: std::path::PathBuf,
}

impl Names {
    fn new(folder: &Path) -> Result<Self> {
        let names = Self { hosts: folder.join("hosts"), switch: folder.join("nsswitch.conf") };
        std::fs::write(&names.switch, "hosts: files\n")?;
        names.are(&[])?;
        Ok(names)
    }

    /// From now on these names lead here, and no others anywhere.
    fn are(&self, names: &[&str]) -> Result<()> {
        // The same file as before: it is mounted.
        Ok(std::fs::write(&self.hosts, format!("127.0.0.1 localhost {}\n", names.join(" ")))?)
    }

    /// A command that sees these names; none where this may not mount anything.
    fn command(&self, program: &Path) -> Option<Command> {
        let unshare = |arguments: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(arguments);
            command
        };
        let may = |arguments: &&[&str]| {
            unshare(arguments)
                .args(["sh", "-c", "mount --bind /etc/hosts /etc/hosts"])
                .output()
                .is_ok_and(|output| output.status.success())
        };
        let ways: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
        let mut command = unshare(ways.iter().find(|way| may(way))?);
        let mount =
            "mount --bind \"$1\" /etc/hosts; mount --bind \"$2\" /etc/nsswitch.conf; shift 2; exec \"$@\"";
        command.args(["sh", "-e", "-c", mount, "sh"]).args([&self.hosts, &self.switch]).arg(program);
        Some(command)
    }
}

/// The states of the nodes, and what is wrong with each.
async fn nodes(address: SocketAddr) -> Result<Vec<(String, String)>> {
    let report: serde_json::Value = serde_json::from_slice(&browser::get(address, "/v1/nodes").await?.body)?;
    let nodes = report["nodes"].as_array().context("no nodes")?.iter();
    let text = |node: &serde_json::Value, field: &str| node[field].as_str().unwrap_or_default().to_owned();
    Ok(nodes.map(|node| (text(node, "state"), text(node, "problem"))).collect())
}

#[tokio::test]
async fn a_name_that_fails_takes_nobody_down_who_answers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let names = Names::new(folder.path())?;
    let Some(mut command) = names.command(&program("mooring")) else {
        println!("SKIPPED: names cannot be made to fail here (unshare --mount is refused)");
        return Ok(());
    };
    let (a, b) = (FakeNode::start(&[200]).await?, FakeNode::start(&[200]).await?);
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    command.args([
        "serve",
        "--listen",
        &address.to_string(),
        "--probe-interval-ms",
        "50",
        "--down-after",
        "3",
    ]);
    command.arg("--state-dir").arg(folder.path().join("state"));
    command.args(["--node", &format!("a=odoo-a:{}", a.address.port())]);
    command.args(["--node", &format!("b=odoo-b:{}", b.address.port())]);
    names.are(&["odoo-a", "odoo-b"])?;
    let mut process = Process::start("the sidecar", command, &folder.path().join("sidecar.log"))?;
    let ready = async || browser::get(address, "/readyz").await.ok().filter(|answer| answer.status == 200);
    process.wait(PATIENCE, ready).await?;

    // One name fails, then all, and Odoo answers all the time.
    for left in [&["odoo-a"][..], &[]] {
        names.are(left)?;
        let answered = b.answered();
        let started = Instant::now();
        while b.answered() < answered + 10 {
            ensure!(started.elapsed() < PATIENCE, "it is not probed any more: {:?}", nodes(address).await?);
            for (state, problem) in nodes(address).await? {
                ensure!(state == "active", "{state}: {problem}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let problem = &nodes(address).await?[1].1;
        ensure!(problem.contains("its address cannot be found"), "{problem:?} is said of it");
    }
    let log = process.printed();
    ensure!(log.matches("its address cannot be found").count() == 2, "once for each: {log}");

    // Who does not answer either is down.
    drop(b);
    let down = async || nodes(address).await.ok().filter(|nodes| nodes[1].0 == "down");
    let found = process.wait(PATIENCE, down).await?;
    ensure!(found[0].0 == "active" && found[1].1.contains("refused"), "{found:?}");

    names.are(&["odoo-a", "odoo-b"])?;
    let well = async || nodes(address).await.ok().filter(|nodes| nodes[0].1.is_empty());
    process.wait(PATIENCE, well).await?;
    Ok(())
}
