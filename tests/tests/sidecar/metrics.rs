//! `GET /metrics`, in OpenMetrics' text format.

use std::collections::HashMap;

use super::*;

/// What a scrape says: each sample with its labels, and its value.
struct Scrape(HashMap<String, f64>);

impl Scrape {
    async fn of(sidecar: &Sidecar) -> Result<Self> {
        let answer = sidecar.get("/metrics").await?;
        ensure!(answer.status == 200);
        ensure!(answer.header("content-type").starts_with("application/openmetrics-text"));
        Self::parse(&answer.text())
    }

    /// Reads the format strictly: every sample belongs to the family described just before it.
    fn parse(text: &str) -> Result<Self> {
        let body = text.strip_suffix("# EOF\n").context("it does not end with # EOF")?;
        let (mut samples, mut help, mut family) = (HashMap::new(), None, None);
        for line in body.lines() {
            if let Some(described) = line.strip_prefix("# HELP ") {
                let (name, meaning) = described.split_once(' ').context("no help")?;
                ensure!(!meaning.is_empty() && name.starts_with("mooring_"), "{line}");
                help = Some(name);
            } else if let Some(typed) = line.strip_prefix("# TYPE ") {
                let (name, kind) = typed.split_once(' ').context("no type")?;
                ensure!(help == Some(name), "{line}: no HELP before it");
                ensure!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                family = Some((name, kind));
            } else if let Some(unit) = line.strip_prefix("# UNIT ") {
                let (name, unit) = unit.split_once(' ').context("no unit")?;
                ensure!(name.ends_with(unit), "{line}");
            } else {
                let (sample, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
                let (family, kind) = family.with_context(|| format!("{line}: no TYPE before it"))?;
                let suffixes: &[&str] = match kind {
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_count", "_sum"],
                    _ => &[""],
                };
                let name = sample.split('{').next().unwrap_or_default();
                let is_of_family = |suffix: &&str| name == format!("{family}{suffix}");
                ensure!(suffixes.iter().any(is_of_family), "{line} is not of {family}");
                let before = samples.insert(sample.to_owned(), value.parse()?);
                ensure!(before.is_none(), "{line} is there twice");
            }
        }
        Ok(Self(samples))
    }

    fn value(&self, sample: &str) -> Option<f64> {
        self.0.get(sample).copied()
    }
}

/// One sample's value.
pub async fn value(sidecar: &Sidecar, sample: &str) -> Result<f64> {
    let scrape = Scrape::of(sidecar).await?;
    scrape.value(sample).with_context(|| format!("no {sample} in {:?}", scrape.0))
}

#[tokio::test]
async fn everything_is_counted_and_readable() -> Result<()> {
    let good = FakeNode::start(&[200]).await?;
    let mut sidecar = Sidecar::start(&[good.spec("a"), absent("b")], &[]).await?;
    sidecar.wait_until_ready().await?;
    sidecar.owner("s").await?;
    for (node, expect) in [("a", 0), ("a", 1), ("b", 7), ("b", 1)] {
        sidecar.claim("s", node, expect).await?;
    }
    sidecar.claim("t", "b", 0).await?;
    sidecar.owner("s").await?;
    sidecar.wait_until_counted("\"sessions\":2").await?;
    let scrape = Scrape::of(&sidecar).await?;
    for (sample, expected) in [
        ("mooring_owner_lookups_total{result=\"Unowned\"}", 1.0),
        ("mooring_owner_lookups_total{result=\"Owned\"}", 1.0),
        ("mooring_claims_total{result=\"Granted\"}", 4.0),
        ("mooring_claims_total{result=\"Refused\"}", 1.0),
        ("mooring_owner_changes_total", 1.0),
        ("mooring_watchers", 0.0),
        ("mooring_store_up", 1.0),
        ("mooring_node_state{node=\"a\",state=\"active\"}", 1.0),
        ("mooring_node_state{node=\"a\",state=\"down\"}", 0.0),
        ("mooring_node_state{node=\"b\",state=\"active\"}", 0.0),
        ("mooring_node_state{node=\"b\",state=\"down\"}", 1.0),
        ("mooring_node_sessions{node=\"a\"}", 0.0),
        ("mooring_node_sessions{node=\"b\"}", 2.0),
    ] {
        let found = scrape.value(sample);
        ensure!(found == Some(expected), "{sample}: {found:?} in {:?}", scrape.0);
    }
    let failures = scrape.value("mooring_node_probe_failures_total{node=\"b\"}");
    ensure!(failures.is_some_and(|failures| failures >= 1.0), "{failures:?}");
    let seconds = scrape.value("mooring_node_probe_seconds{node=\"a\"}");
    ensure!(seconds.is_some_and(|seconds| (0.0..10.0).contains(&seconds)), "{seconds:?}");
    let key = key("s").to_string();
    ensure!(scrape.0.keys().all(|sample| !sample.contains(&key)), "a key is a label");
    Ok(())
}

#[test]
fn what_is_no_openmetrics_is_noticed() {
    let good = "# HELP mooring_x Things.\n# TYPE mooring_x counter\nmooring_x_total{a=\"b c\"} 1\n# EOF\n";
    assert_eq!(Scrape::parse(good).unwrap().value("mooring_x_total{a=\"b c\"}"), Some(1.0));
    for (from, to) in [
        ("# EOF\n", ""),
        ("# HELP mooring_x Things.\n", ""),
        ("# TYPE mooring_x counter\n", ""),
        ("mooring_x", "x"),
        ("_total", ""),
        ("} 1", "} one"),
        ("mooring_x_total{a=\"b c\"} 1\n", "mooring_y_total 1\n"),
    ] {
        assert!(Scrape::parse(&good.replace(from, to)).is_err(), "without {from:?}");
    }
}
