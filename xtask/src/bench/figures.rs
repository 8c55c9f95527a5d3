//! Medians and quartiles, and how they are shown.

use anyhow::{Error, Result};
use serde::Serialize;
use serde_json::Value;

use super::{load::Slice, variants::Variant, wasmtime::Wasmtime};

/// The middle half of some values.
#[derive(Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub q1: f64,
    pub q3: f64,
}

impl Spread {
    /// The spread of `values`; none if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (values.len().checked_sub(1)?) as f64;
            let (low, high) = (values.get(place.floor() as usize)?, values.get(place.ceil() as usize)?);
            Some(low + (high - low) * place.fract())
        };
        Some(Self { median: at(0.5)?, q1: at(0.25)?, q3: at(0.75)? })
    }

    pub fn show(self, decimals: usize) -> String {
        let Self { median, q1, q3 } = self;
        format!("{median:.decimals$} ({q1:.decimals$}–{q3:.decimals$})")
    }
}

/// What was measured of one variant.
#[derive(Serialize)]
struct Row {
    variant: String,
    requests_per_second: Spread,
    /// Requests a second as a share of bare Envoy's in the same round.
    of_bare: Option<Spread>,
    /// The same of the filter that does nothing.
    of_noop: Option<Spread>,
    /// The same of that filter in Mooring's place.
    of_noop_in_place: Option<Spread>,
    cpu_us_per_request: Spread,
    /// Processor time beyond bare Envoy's in the same round, in microseconds a request.
    cpu_us_over_bare: Option<Spread>,
    p50_ms: f64,
    p99_ms: f64,
}

/// Everything that was measured.
#[derive(Serialize)]
pub struct Report {
    about: Value,
    variants: Vec<Row>,
    wasmtime: Option<Wasmtime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wasmtime_error: Option<String>,
}

impl Report {
    /// Makes a report from the slices of each variant.
    pub fn new(about: Value, measured: Vec<(String, Vec<Slice>)>) -> Self {
        let rounds_of = |variant: Variant| {
            let name = variant.to_string();
            measured.iter().find(|(other, _)| *other == name).map(|(_, slices)| slices.as_slice())
        };
        let [bare, noop, in_place] = [Variant::Bare, Variant::Noop, Variant::NoopInPlace].map(rounds_of);
        let row = |(name, slices): &(String, Vec<Slice>)| {
            // Rounds are compared with themselves: what else the machine did changes from one to the next.
            let paired = |base: Option<&[Slice]>, compare: fn(&Slice, &Slice) -> f64| {
                Spread::of(slices.iter().zip(base?).map(|(slice, base)| compare(slice, base)))
            };
            let share = |slice: &Slice, base: &Slice| slice.rate / base.rate;
            let spread = |figure: fn(&Slice) -> f64| Spread::of(slices.iter().map(figure));
            Some(Row {
                variant: name.clone(),
                requests_per_second: spread(|slice| slice.rate)?,
                of_bare: paired(bare, share),
                of_noop: paired(noop, share),
                of_noop_in_place: paired(in_place, share),
                cpu_us_per_request: spread(|slice| slice.cpu_us)?,
                cpu_us_over_bare: paired(bare, |slice, base| slice.cpu_us - base.cpu_us),
                p50_ms: spread(|slice| slice.p50_us / 1e3)?.median,
                p99_ms: spread(|slice| slice.p99_us / 1e3)?.median,
            })
        };
        let variants = measured.iter().filter_map(row).collect();
        Self { about, variants, wasmtime: None, wasmtime_error: None }
    }

    /// Adds the module's cost in wasmtime; what went wrong, if anything did.
    pub fn add_wasmtime(&mut self, measured: Option<Result<Wasmtime>>) -> Option<Error> {
        match measured? {
            Ok(wasmtime) => {
                self.wasmtime = Some(wasmtime);
                None
            }
            Err(error) => {
                self.wasmtime_error = Some(format!("{error:#}"));
                Some(error)
            }
        }
    }

    /// The report for people.
    pub fn markdown(&self) -> String {
        let about: Vec<String> = self
            .about
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{}: {}", name.replace('_', " "), text(value)))
            .collect();
        let head = [
            "",
            "requests/s",
            "of bare Envoy",
            "of no-op wasm",
            "of it in place",
            "CPU µs/request",
            "over bare",
            "p50 ms",
            "p99 ms",
        ];
        let shown = |spread: Option<Spread>, decimals| spread.map_or("–".into(), |it| it.show(decimals));
        let row = |row: &Row| {
            [
                row.variant.clone(),
                row.requests_per_second.show(0),
                shown(row.of_bare, 3),
                shown(row.of_noop, 3),
                shown(row.of_noop_in_place, 3),
                row.cpu_us_per_request.show(1),
                shown(row.cpu_us_over_bare, 1),
                format!("{:.2}", row.p50_ms),
                format!("{:.2}", row.p99_ms),
            ]
        };
        let mut text = format!("{}\n\n", about.join("; "));
        text += &table(&head, self.variants.iter().map(row));
        text += "\nMedian (first–third quartile) over the rounds; shares and differences are taken within a round.\n";
        if let Some(wasmtime) = &self.wasmtime {
            let row = |case: &super::wasmtime::Case| {
                let spread = Spread { median: case.ns_median, q1: case.ns_q1, q3: case.ns_q3 };
                let calls = case.hostcalls.iter().map(|(name, count)| format!("{name} {count}"));
                let own = format!("{:.0}", case.ns_median - case.ns_in_hostcalls);
                [case.name.clone(), spread.show(0), own, calls.collect::<Vec<_>>().join(", ")]
            };
            text += "\n";
            text += &table(
                &["a request in wasmtime", "ns", "module's own", "hostcalls"],
                wasmtime.cases.iter().map(row),
            );
        }
        if let Some(error) = &self.wasmtime_error {
            text += &format!("\n**The module in wasmtime was NOT measured:** {error}\n");
        }
        text
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A table in Markdown: the first column to the left, the others to the right.
pub fn table<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = |place: usize| if place == 0 { "---".to_owned() } else { "---:".to_owned() };
    let mut text = line(&head.map(str::to_owned));
    text += &line(&(0..N).map(rule).collect::<Vec<_>>());
    rows.for_each(|row| text += &line(&row));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        let spread = Spread::of([4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((spread.q1, spread.median, spread.q3), (1.75, 2.5, 3.25));
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn rounds_are_compared_with_themselves() {
        let slice = |rate, cpu_us| Slice { rate, cpu_us, p50_us: 1.0, p99_us: 1.0, errors: 0 };
        let bare = vec![slice(100.0, 10.0), slice(10.0, 20.0)];
        let noop = vec![slice(50.0, 15.0), slice(5.0, 25.0)];
        let measured = vec![(Variant::Bare.to_string(), bare), (Variant::Noop.to_string(), noop)];
        let report = Report::new(Value::Null, measured);
        let row = report.variants.last().expect("a row");
        let share = row.of_bare.expect("a share");
        assert_eq!((share.q1, share.q3), (0.5, 0.5));
        assert_eq!(row.cpu_us_over_bare.expect("a difference").median, 5.0);
    }
}
