//! `mooring cache`: what the ORM cache does, as a table for people or as JSON for machines.

use comfy_table::{Cell, CellAlignment, Table, presets};

use crate::{
    asking::{AskError, Sidecar},
    cli::Cache,
    orm_cache::{Report, Row},
};

/// Prints it.
///
/// # Errors
/// If no sidecar answers, or it has no such cache.
#[allow(clippy::print_stdout)]
pub(crate) async fn run(options: Cache) -> Result<(), AskError> {
    let report: Report = Sidecar::new(&options.asked)?.get("/v1/cache").await?;
    if options.json {
        println!("{}", serde_json::to_string(&report).unwrap_or_default());
    } else {
        println!("{}", text(&report));
    }
    Ok(())
}

fn text(report: &Report) -> String {
    let sharing = match report.sharing {
        Some(true) => "shared through Redis",
        Some(false) => "Redis cannot be reached: not shared",
        None => "of this sidecar only",
    };
    let (values, megabytes) = (report.values, |bytes: u64| bytes as f64 / f64::from(1 << 20));
    let (used, most) = (megabytes(report.bytes), megabytes(report.most_bytes));
    format!("{}\n{values} values, {used:.1} of {most:.0} MB; {sharing}", table(&report.methods))
}

fn table(methods: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["cache", "method", "hits", "shared", "waited", "misses", "published", "KB", "saved"]);
    let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    for row in methods {
        // The module's name is long, and its last part says enough.
        let method = short(&row.method);
        table.add_row([
            Cell::new(&row.cache),
            Cell::new(method),
            right(row.hits.to_string()),
            right(row.shared.to_string()),
            right(row.waits.to_string()),
            right(row.misses.to_string()),
            right(row.puts.to_string()),
            right(format!("{:.0}", row.bytes as f64 / 1024.0)),
            right(format!("{:.1} s", row.saved_ms / 1e3)),
        ]);
    }
    table
}

/// `module.path:Class.method` without the path.
fn short(method: &str) -> &str {
    method.split_once(':').map_or(method, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_what_was_saved_and_whether_it_is_shared() {
        let row = Row {
            cache: "assets".into(),
            method: "odoo.addons.base.models.ir_asset:IrAsset._get_asset_paths".into(),
            hits: 7,
            bytes: 621_568,
            saved_ms: 1_234.0,
            ..Row::default()
        };
        let report =
            Report { most_bytes: 256 << 20, sharing: Some(false), methods: vec![row], ..Report::default() };
        let text = text(&report);
        for part in [" IrAsset._get_asset_paths", "607", "1.2 s", "of 256 MB", "not shared"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
