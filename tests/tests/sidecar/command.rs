//! `mooring nodes`, help, and logs.

use super::*;

#[tokio::test]
async fn the_nodes_are_shown_to_people_and_machines() -> Result<()> {
    let good = FakeNode::start(&[200]).await?;
    let gone = absent("odoo-2");
    let nodes = [format!("{},gevent=127.0.0.1:{},weight=3", good.spec("odoo-1"), free_port()?), gone.clone()];
    let mut sidecar = Sidecar::start(&nodes, &[]).await?;
    sidecar.wait_until_ready().await?;
    for number in 0..4 {
        sidecar.claim(&format!("session {number}"), "odoo-1", 0).await?;
    }
    let at = sidecar.address.to_string();
    sidecar.wait_until_counted("\"sessions\":4").await?;
    let output = run(mooring(&["nodes", "--sidecar", &at]))?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let table = String::from_utf8(output.stdout)?;
    ensure!(!table.contains('\u{1b}'), "colours for nobody: {table:?}");
    let row =
        |id: &str| table.lines().find(|line| line.contains(id)).map(str::to_owned).context(table.clone());
    for (id, parts) in [
        ("odoo-1", vec!["active", " 4 ", "133 %", " 3 ", " ms "]),
        ("odoo-2", vec!["down", "Connection refused", " 0 ", "0 %", " 1 ", "–"]),
    ] {
        let row = row(id)?;
        ensure!(parts.iter().all(|part| row.contains(part)), "{parts:?} in {row}");
    }
    ensure!(row("odoo-1")?.contains(&good.address.to_string()));

    let output = run(mooring(&["nodes", "--json", "--sidecar", &at]))?;
    ensure!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let [first, second] = [&report["nodes"][0], &report["nodes"][1]];
    ensure!(first["id"] == "odoo-1" && first["state"] == "active" && first["sessions"] == 4, "{report}");
    ensure!(first["weight"] == 3 && first["problem"].is_null() && first["probe_ms"].is_number(), "{report}");
    ensure!(second["state"] == "down" && second["gevent"].is_null(), "{report}");
    ensure!(second["http"] == gone.trim_start_matches("odoo-2="), "{report}");
    Ok(())
}

#[tokio::test]
async fn without_a_sidecar_it_says_where_it_looked_and_what_to_do() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = format!("unix:{}", folder.path().join("mooring.sock").display());
    for nobody in [format!("127.0.0.1:{}", free_port()?), socket] {
        for format in [&[][..], &["--json"]] {
            let output = run(mooring(&[&["nodes", "--sidecar", &nobody], format].concat()))?;
            let said = String::from_utf8(output.stderr)?;
            ensure!(!output.status.success() && output.stdout.is_empty());
            let expected = [nobody.as_str(), "is `mooring serve` running", "--sidecar"];
            ensure!(expected.iter().all(|part| said.contains(part)), "{said}");
        }
    }
    // Something else answers there.
    let node = FakeNode::start(&[200]).await?;
    let at = node.address.to_string();
    let output = tokio::task::spawn_blocking(move || run(mooring(&["nodes", "--sidecar", &at]))).await??;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("is not a sidecar"), "{said}");
    Ok(())
}

#[test]
fn help_names_a_variable_for_every_option() -> Result<()> {
    for command in ["serve", "nodes", "drain", "undrain", "owner"] {
        let output = run(mooring(&[command, "--help"]))?;
        ensure!(output.status.success());
        let help = String::from_utf8(output.stdout)?;
        let mut options = 0;
        // An option's text goes on until the next option's.
        for part in help.split("\n      --").skip(1) {
            let option = part.split_whitespace().next().unwrap_or_default();
            // A line may end within the brackets.
            let text = part.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(text.contains("[env: MOORING_"), "--{option} has no variable:\n{part}");
            options += 1;
        }
        ensure!(options >= 2 && help.contains("--help"), "{help}");
    }
    let output = run(mooring(&["--version"]))?;
    ensure!(output.status.success() && output.stdout.starts_with(b"mooring "), "{output:?}");
    let output = run(mooring(&["sail"]))?;
    ensure!(!output.status.success() && String::from_utf8(output.stderr)?.contains("--help"));
    Ok(())
}

#[tokio::test]
async fn logs_for_machines_are_one_object_a_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = FakeNode::start(&[200, 200, 500]).await?;
    let address: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let mut process =
        start_in(folder.path(), address, &[node.spec("odoo-1")], &["--log-format", "json"]).await?;
    let text = async || browser::get(address, "/v1/nodes").await.ok().map(|answer| answer.text());
    process.wait(PATIENCE, async || text().await.filter(|text| text.contains("\"down\""))).await?;
    tokio::task::spawn_blocking(move || process.terminate()).await??;
    let log = std::fs::read_to_string(folder.path().join("sidecar.log"))?;
    let mut messages = Vec::new();
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(entry["timestamp"].is_string() && entry["level"].is_string(), "{line}");
        messages.push(entry);
    }
    let has = |level: &str, part: &str| {
        messages.iter().find(|entry| {
            entry["level"] == level && entry["message"].as_str().is_some_and(|message| message.contains(part))
        })
    };
    ensure!(has("INFO", &format!("listening on http://{address}")).is_some(), "{log}");
    let down = has("WARN", "is down").context(log.clone())?;
    ensure!(down["node"] == "odoo-1", "{down}");
    ensure!(has("INFO", "ending").is_some(), "{log}");
    Ok(())
}

#[tokio::test]
async fn health_is_an_exit_status() -> Result<()> {
    let node = FakeNode::start(&[200]).await?;
    let nobody = format!("127.0.0.1:{}", free_port()?);
    let store = format!("redis://{nobody}/0");
    let without_store = Sidecar::start(&[node.spec("odoo-1")], &["--store", &store]).await?;
    let mut well = Sidecar::start(&[node.spec("odoo-1")], &[]).await?;
    well.wait_until_ready().await?;
    for (at, ready, says) in [
        (well.address.to_string(), false, ""),
        (well.address.to_string(), true, ""),
        (without_store.address.to_string(), false, ""),
        (without_store.address.to_string(), true, "store"),
        (nobody.clone(), false, "no sidecar answers"),
    ] {
        let output =
            run(mooring(&[&["health", "--sidecar", &at], &["--ready"][..usize::from(ready)]].concat()))?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.stdout.is_empty() && output.status.success() == says.is_empty(),
            "{at} {ready}: {said}"
        );
        ensure!(said.contains(says) && said.is_empty() == says.is_empty(), "{said}");
    }
    Ok(())
}
