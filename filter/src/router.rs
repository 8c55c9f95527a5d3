//! The nodes, with the header values that choose them ready to write.

use affinity::{Membership, Port, SessionKey, plan::Plan};
use arrayvec::ArrayString;
use base64::{Engine, engine::general_purpose::STANDARD};

/// Two addresses, the longest of which is an IPv6 one with its zone: 58 bytes.
const LONGEST_LIST: usize = 128;

/// One node's addresses as Envoy's two policies want them.
struct Berth {
    /// `ip:port` for `override_host`: HTTP, gevent.
    plain: [String; 2],
    /// The same in base64 for `stateful_session`.
    encoded: [String; 2],
}

/// A membership and its header values.
pub(crate) struct Router {
    membership: Membership,
    digest: u64,
    berths: Vec<Berth>,
}

fn index(port: Port) -> usize {
    match port {
        Port::Http => 0,
        Port::Gevent => 1,
    }
}

impl Router {
    pub(crate) fn new(membership: Membership) -> Self {
        let berth = |node: &affinity::Node| {
            let plain = [Port::Http, Port::Gevent].map(|port| node.address(port).to_string());
            let encoded = plain.each_ref().map(|address| STANDARD.encode(address));
            Berth { plain, encoded }
        };
        let berths = membership.nodes().iter().map(berth).collect();
        Self { digest: membership.digest(), berths, membership }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn plan(&self, key: SessionKey, owner: Option<u64>) -> Plan {
        affinity::plan::plan(&self.membership, key, owner)
    }

    /// [`plan_newcomer`](affinity::plan::plan_newcomer).
    pub(crate) fn plan_newcomer(&self, key: SessionKey) -> Plan {
        affinity::plan::plan_newcomer(&self.membership, key)
    }

    pub(crate) fn seed(&self, place: usize) -> Option<u64> {
        self.membership.nodes().get(place).map(|node| node.id.seed())
    }

    pub(crate) fn id_of_seed(&self, seed: u64) -> Option<&affinity::NodeId> {
        let place = self.membership.position_of_seed(seed)?;
        self.membership.nodes().get(place).map(|node| &node.id)
    }

    /// The node with this seed, if its sidecar carries sessions.
    pub(crate) fn carrier(&self, seed: u64) -> Option<&affinity::NodeId> {
        let node = self.membership.nodes().get(self.membership.position_of_seed(seed)?)?;
        node.carries.then_some(&node.id)
    }

    /// What `stateful_session` is to be told for the node at `place`.
    pub(crate) fn upstream(&self, place: usize, port: Port) -> Option<&str> {
        self.berths.get(place)?.encoded.get(index(port)).map(String::as_str)
    }

    /// What `override_host` is to be told: the nodes at `places`, in order.
    pub(crate) fn next(&self, places: &[usize], port: Port) -> ArrayString<LONGEST_LIST> {
        let mut list = ArrayString::new();
        for address in places.iter().filter_map(|place| self.berths.get(*place)?.plain.get(index(port))) {
            let comma = if list.is_empty() { "" } else { "," };
            // What does not fit is left out; a plan does.
            if list.remaining_capacity() > address.len() {
                list.push_str(comma);
                list.push_str(address);
            }
        }
        list
    }

    /// The node at whose address, as `stateful_session` writes it, somebody served.
    pub(crate) fn seed_of_upstream(&self, encoded: &[u8]) -> Option<u64> {
        let matches = |berth: &Berth| berth.encoded.iter().any(|known| known.as_bytes() == encoded);
        self.seed(self.berths.iter().position(matches)?)
    }
}
