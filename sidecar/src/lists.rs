//! What sidecars tell each other through the store, and whether their lists of nodes agree: a session of one
//! server must not be looked for at another.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use affinity::NodeId;
use serde::{Deserialize, Serialize};

/// How long a difference must last before it is said: what a sidecar told outlives it for a moment.
const LASTING: Duration = Duration::from_secs(6);
/// A sidecar that told nothing for longer may have ended.
const ALIVE: Duration = Duration::from_secs(3);
/// How many differences are told at most; the others are counted.
const MOST: usize = 12;

/// What one sidecar tells the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// Its host and where it listens, for operators.
    pub(crate) name: String,
    /// In which network it is: a loopback address means another server in another network.
    pub(crate) network: String,
    /// Whether filters ask it: then it must know every node that others send people to.
    pub(crate) asked: bool,
    /// The nodes that it was told of.
    pub(crate) nodes: BTreeMap<NodeId, Listed>,
    /// The sessions in use on each node, as it sees them.
    pub(crate) loads: HashMap<NodeId, u64>,
    /// How long ago it told that.
    #[serde(skip)]
    pub(crate) age: Duration,
}

/// A node as a sidecar was told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub(crate) http: Place,
    pub(crate) gevent: Option<Place>,
    pub(crate) weight: u16,
    /// Whether the sidecar registers it for the others, who then need not be told of it.
    pub(crate) registers: bool,
}

/// An address as it was written, and where that leads, if that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) text: String,
    pub(crate) address: Option<SocketAddr>,
}

impl Place {
    /// Whether it leads to where another one leads; none if that cannot be said.
    fn is(&self, other: &Self, same_network: bool) -> Option<bool> {
        let local = |place: &Self| place.address.is_some_and(|address| address.ip().is_loopback());
        match (local(self), local(other)) {
            // To this host from one of them, to a host by its name or address in a network from the other.
            (true, false) | (false, true) => None,
            (true, true) if !same_network => None,
            _ if self.text.eq_ignore_ascii_case(&other.text) => Some(true),
            _ => self.address.zip(other.address).map(|(one, other)| one == other),
        }
    }
}

impl Told {
    /// What a sidecar that listens there tells before it knows anything.
    pub(crate) fn of(listen: &str) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let network = fs::read_link("/proc/self/ns/net").unwrap_or_default();
        Self {
            name: format!("{host} ({listen})"),
            network: format!("{} {}", boot.trim(), network.display()),
            ..Self::default()
        }
    }

    /// Reads what one told, by the store's clock `now`: when, and what. None if it is something else.
    pub(crate) fn read(text: &str, now: u64) -> Option<Self> {
        let (when, json) = text.split_once(' ')?;
        let told: Self = serde_json::from_str(json).ok()?;
        let age = Duration::from_secs(now.saturating_sub(when.parse().ok()?));
        Some(Self { age, ..told })
    }

    /// What differs between its list and another's, given the nodes that are `registered` for all.
    fn differences(&self, other: &Self, registered: &BTreeSet<&NodeId>) -> Vec<String> {
        let same_network = self.network == other.network;
        let mut found = Vec::new();
        for (id, here) in &self.nodes {
            let Some(there) = other.nodes.get(id) else { continue };
            if here.http.is(&there.http, same_network) == Some(false) {
                found.push(format!("{id} is at {} here, at {} there", here.http.text, there.http.text));
            }
            let text = |place: &Option<Place>| place.as_ref().map_or("none", |place| &place.text).to_owned();
            let same = match (&here.gevent, &there.gevent) {
                (Some(here), Some(there)) => here.is(there, same_network),
                (here, there) => Some(here.is_none() && there.is_none()),
            };
            if same == Some(false) {
                let (here, there) = (text(&here.gevent), text(&there.gevent));
                found.push(format!("{id} has the gevent address {here} here, {there} there"));
            }
            if here.weight != there.weight {
                found.push(format!("{id} has weight {} here, {} there", here.weight, there.weight));
            }
        }
        let mut renamed = BTreeSet::new();
        for (here, at) in self.nodes.iter().filter(|(id, _)| !other.nodes.contains_key(id)) {
            let others = other.nodes.iter().filter(|(id, _)| !self.nodes.contains_key(id));
            for (there, _) in others.filter(|(_, it)| at.http.is(&it.http, same_network) == Some(true)) {
                found.push(format!("{} is called {here} here, {there} there", at.http.text));
                renamed.extend([here, there]);
            }
        }
        if self.asked && other.asked {
            for (of, by, place) in [(self, other, "there"), (other, self, "here")] {
                let missing = |id: &NodeId| {
                    !by.nodes.contains_key(id) && !registered.contains(id) && !renamed.contains(id)
                };
                let missing = of.nodes.iter().filter(|(id, it)| !it.registers && missing(id));
                found.extend(missing.map(|(id, _)| format!("{id} is not known {place}")));
            }
        }
        found
    }
}

/// The differences that were found, and since when.
#[derive(Debug, Default)]
pub(crate) struct Differences(BTreeMap<String, Difference>);

#[derive(Debug)]
struct Difference {
    /// The sidecars that differ so.
    with: BTreeSet<String>,
    since: Instant,
    said: bool,
}

impl Differences {
    /// Compares what a sidecar tells with what others told, and logs what is new.
    pub(crate) fn take_in(&mut self, own: &Told, others: &[Told], registered: &BTreeSet<&NodeId>) {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for other in others.iter().filter(|other| other.age <= ALIVE) {
            for difference in own.differences(other, registered) {
                found.entry(difference).or_default().insert(other.name.clone());
            }
        }
        let (were_said, now) = (self.0.values().any(|difference| difference.said), Instant::now());
        self.0.retain(|text, _| found.contains_key(text));
        for (text, with) in found {
            let known = self.0.entry(text).or_insert_with(|| Difference {
                with: BTreeSet::new(),
                since: now,
                said: false,
            });
            known.with = with;
        }
        let mut unsaid = 0_usize;
        for (text, difference) in &mut self.0 {
            if !difference.said && difference.since.elapsed() >= LASTING {
                difference.said = true;
                unsaid += 1;
                if unsaid <= MOST {
                    tracing::error!("sidecars were told of different nodes: {}", line(text, difference));
                }
            }
        }
        if unsaid > MOST {
            tracing::error!("sidecars were told of different nodes: {} further differences", unsaid - MOST);
        }
        if were_said && self.0.is_empty() {
            tracing::info!("all sidecars were told of the same nodes again");
        }
    }

    /// Those that have lasted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let said = || self.0.iter().filter(|(_, difference)| difference.said);
        let mut lines: Vec<String> =
            said().take(MOST).map(|(text, difference)| line(text, difference)).collect();
        let further = said().count().saturating_sub(MOST);
        if further > 0 {
            lines.push(format!("{further} further differences"));
        }
        lines
    }
}

fn line(text: &str, difference: &Difference) -> String {
    let with: Vec<&str> = difference.with.iter().take(3).map(String::as_str).collect();
    let further = difference.with.len().saturating_sub(with.len());
    let more = if further > 0 { format!(" and {further} further") } else { String::new() };
    format!("{text} (there: the sidecar of {}{more})", with.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_spec::NodeSpec;

    fn told(network: &str, specs: &[&str]) -> Told {
        let nodes = specs.iter().map(|spec| {
            let spec: NodeSpec = spec.parse().unwrap();
            let place = |text: &String| Place { text: text.clone(), address: text.parse().ok() };
            let (http, gevent) = (place(&spec.http), spec.gevent.as_ref().map(place));
            (spec.id, Listed { http, gevent, weight: spec.weight, registers: false })
        });
        let name = format!("a sidecar in {network}");
        Told { name, network: network.into(), asked: true, nodes: nodes.collect(), ..Told::default() }
    }

    fn between(one: &Told, other: &Told) -> Vec<String> {
        let registered = NodeId::new("registered").unwrap();
        let (one_way, back) = (
            one.differences(other, &BTreeSet::from([&registered])),
            other.differences(one, &BTreeSet::from([&registered])),
        );
        assert_eq!(one_way.len(), back.len(), "both sides see it: {one_way:?}, {back:?}");
        one_way
    }

    #[test]
    fn what_differs_is_said_from_this_side() {
        let list = ["odoo-1=10.0.0.1:8069,gevent=10.0.0.1:8072", "odoo-2=10.0.0.2:8069,gevent=10.0.0.2:8072"];
        let here = told("x", &list);
        for (other, expected) in [
            (&list[..], &[][..]),
            (
                &["odoo-1=10.0.0.2:8069,gevent=10.0.0.1:8072", "odoo-2=10.0.0.1:8069,gevent=10.0.0.2:8072"],
                &[
                    "odoo-1 is at 10.0.0.1:8069 here, at 10.0.0.2:8069 there",
                    "odoo-2 is at 10.0.0.2:8069 here, at 10.0.0.1:8069 there",
                ],
            ),
            (
                &["odoo-1=10.0.0.1:8069,gevent=10.0.0.2:8072", "odoo-2=10.0.0.2:8069"],
                &[
                    "odoo-1 has the gevent address 10.0.0.1:8072 here, 10.0.0.2:8072 there",
                    "odoo-2 has the gevent address 10.0.0.2:8072 here, none there",
                ],
            ),
            (
                &["ODOO-1=10.0.0.1:8069,gevent=10.0.0.1:8072", list[1]],
                &["10.0.0.1:8069 is called odoo-1 here, ODOO-1 there"],
            ),
            (
                &["odoo-1=10.0.0.1:8069,gevent=10.0.0.1:8072,weight=2", list[1]],
                &["odoo-1 has weight 1 here, 2 there"],
            ),
            (&[list[0]], &["odoo-2 is not known there"]),
            (&[list[0], list[1], "odoo-3=10.0.0.3:8069"], &["odoo-3 is not known here"]),
            (&[list[0], list[1], "registered=10.0.0.3:8069"], &[]),
        ] {
            assert_eq!(between(&here, &told("y", other)), expected, "{other:?}");
        }
    }

    #[test]
    fn who_need_not_agree_is_left_alone() {
        // Each calls its own host by loopback.
        let one = told("x", &["odoo-1=127.0.0.1:8069", "odoo-2=10.0.0.2:8069"]);
        let other = told("y", &["odoo-1=10.0.0.1:8069", "odoo-2=127.0.0.1:8069"]);
        assert_eq!(between(&one, &other), [""; 0]);
        assert_eq!(between(&one, &told("x", &["odoo-2=127.0.0.1:8069", "odoo-1=10.0.0.2:8069"])), [""; 0]);
        assert_eq!(between(&one, &told("y", &["odoo-2=[::1]:8069", "odoo-1=[::1]:8070"])), [""; 0]);
        // In one network it is the same.
        let crossed = told("x", &["odoo-1=127.0.0.1:8070", "odoo-2=10.0.0.2:8069"]);
        assert_eq!(between(&one, &crossed), ["odoo-1 is at 127.0.0.1:8069 here, at 127.0.0.1:8070 there"]);
        // Nobody asks a sidecar that only stands beside some nodes, and the others hear of what it registers.
        let beside = Told { asked: false, ..told("y", &["odoo-3=10.0.0.3:8069"]) };
        assert_eq!(between(&one, &beside), [""; 0]);
        let mut registers = told("y", &["odoo-3=10.0.0.3:8069"]);
        registers.nodes.values_mut().for_each(|node| node.registers = true);
        assert_eq!(registers.differences(&told("z", &[]), &BTreeSet::new()), [""; 0]);
    }

    #[test]
    fn a_name_is_compared_by_where_it_leads() {
        let named = |text: &str, address: Option<&str>| {
            let mut told = told("x", &[&format!("odoo-1={text}")]);
            let node = told.nodes.values_mut().next().unwrap();
            node.http.address = address.map(|address| address.parse().unwrap());
            told
        };
        let literal = told("y", &["odoo-1=10.0.0.1:8069"]);
        let same = named("odoo.example:8069", Some("10.0.0.1:8069"));
        let other = named("odoo.example:8069", Some("10.0.0.2:8069"));
        let lost = named("odoo.example:8069", None);
        assert_eq!(between(&literal, &same), [""; 0]);
        assert_eq!(between(&literal, &other).len(), 1);
        assert_eq!(between(&literal, &lost), [""; 0], "nobody knows");
        // While a name moves, one sidecar sees it sooner than the other.
        assert_eq!(between(&same, &other), [""; 0]);
        assert_eq!(between(&same, &named("ODOO.example:8069", None)), [""; 0]);
    }

    #[test]
    fn a_difference_is_said_when_it_has_lasted() {
        let one = told("x", &["odoo-1=10.0.0.1:8069"]);
        let others = [told("y", &["odoo-1=10.0.0.2:8069"]), told("z", &["odoo-1=10.0.0.2:8069"])];
        let mut differences = Differences::default();
        let look = |differences: &mut Differences, others: &[Told]| {
            differences.take_in(&one, others, &BTreeSet::new());
            differences.lines()
        };
        assert_eq!(look(&mut differences, &others), [""; 0]);
        let long_ago = |differences: &mut Differences| {
            differences.0.values_mut().for_each(|difference| difference.since -= LASTING);
        };
        long_ago(&mut differences);
        let line = "odoo-1 is at 10.0.0.1:8069 here, at 10.0.0.2:8069 there (there: the sidecar of a sidecar in \
                    y, a sidecar in z)";
        assert_eq!(look(&mut differences, &others), [line]);
        // One that ended is no difference.
        let silent = others.clone().map(|told| Told { age: ALIVE + Duration::from_secs(1), ..told });
        assert_eq!(look(&mut differences, &silent), [""; 0]);
        assert_eq!(look(&mut differences, &others), [""; 0], "it must last again");
    }

    #[test]
    fn what_others_left_in_the_store_is_no_list() {
        let json = serde_json::to_string(&told("x", &["odoo-1=10.0.0.1:8069"])).unwrap();
        let read = Told::read(&format!("100 {json}"), 107).unwrap();
        assert_eq!((read.age, read.nodes.len()), (Duration::from_secs(7), 1));
        for text in
            ["", "100", "100 {}", "x {}", &json, &format!("100 {}", json.replace("odoo-1", "a\\u001b"))]
        {
            assert_eq!(Told::read(text, 100), None, "{text}");
        }
    }
}
