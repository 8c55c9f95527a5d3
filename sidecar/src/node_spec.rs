//! One node as an operator names it: `odoo-1=127.0.0.1:8069,gevent=127.0.0.1:8072,weight=2`.

use std::{net::SocketAddr, str::FromStr};

use affinity::{
    Node, NodeId, NodeState,
    membership::{MAX_WEIGHT, canonical},
};

/// Where a node is, without its name: `127.0.0.1:8069,gevent=127.0.0.1:8072,weight=2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Places {
    http: String,
    gevent: Option<String>,
    weight: u16,
}

impl Places {
    /// The node of that name at these places.
    pub(crate) fn of(self, id: NodeId) -> NodeSpec {
        let Self { http, gevent, weight } = self;
        NodeSpec { id, http, gevent, weight }
    }
}

/// A node whose host names have yet to be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeSpec {
    pub(crate) id: NodeId,
    pub(crate) http: String,
    pub(crate) gevent: Option<String>,
    pub(crate) weight: u16,
}

/// Why a text names no node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidSpec {
    #[error("expected ID=HOST:PORT[,gevent=HOST:PORT][,weight=N]")]
    Form,
    #[error("{0}")]
    Id(#[from] affinity::membership::InvalidNodeId),
    #[error("{field}: expected HOST:PORT, found {found:?}")]
    Address { field: &'static str, found: String },
    #[error("weight: expected 1 to {MAX_WEIGHT}, found {0:?}")]
    Weight(String),
    #[error("unknown field {0:?}, expected gevent or weight")]
    Unknown(String),
    #[error("{0} is given twice")]
    Twice(&'static str),
}

impl FromStr for NodeSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let (id, places) = text.split_once('=').ok_or(InvalidSpec::Form)?;
        let places: Places = places.parse()?;
        Ok(places.of(NodeId::new(id)?))
    }
}

impl FromStr for Places {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let mut parts = text.split(',');
        let http = host_port("address", parts.next().unwrap_or_default())?;
        let (mut gevent, mut weight) = (None, None);
        for part in parts {
            match part.split_once('=') {
                Some(("gevent", value)) if gevent.is_none() => gevent = Some(host_port("gevent", value)?),
                Some(("gevent", _)) => return Err(InvalidSpec::Twice("gevent")),
                Some(("weight", _)) if weight.is_some() => return Err(InvalidSpec::Twice("weight")),
                Some(("weight", value)) => {
                    let number = value.parse().ok().filter(|number| (1..=MAX_WEIGHT).contains(number));
                    weight = Some(number.ok_or_else(|| InvalidSpec::Weight(value.to_owned()))?);
                }
                _ => return Err(InvalidSpec::Unknown(part.to_owned())),
            }
        }
        Ok(Self { http, gevent, weight: weight.unwrap_or(1) })
    }
}

fn host_port(field: &'static str, text: &str) -> Result<String, InvalidSpec> {
    let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
        // An IPv6 address needs brackets, or its last group would be the port.
        let bare_colon = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
        !host.is_empty() && !bare_colon && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !valid {
        return Err(InvalidSpec::Address { field, found: text.to_owned() });
    }
    // Of several ways to write an address, one is compared and shown.
    Ok(text.parse().map_or_else(|_| text.to_owned(), |address| canonical(address).to_string()))
}

impl NodeSpec {
    /// The node, if none of its hosts has a name that must be resolved.
    pub(crate) fn literal(&self) -> Option<Node> {
        let gevent = self.gevent.as_ref().map(|address| address.parse()).transpose().ok()?;
        let (id, http, weight) = (self.id.clone(), self.http.parse().ok()?, self.weight);
        Some(Node { id, http, gevent, weight, state: NodeState::default(), full: false, carries: false })
    }

    /// Resolves its host names: Envoy matches hosts by address only.
    ///
    /// # Errors
    /// If a name does not resolve.
    pub(crate) async fn resolve(&self, state: NodeState) -> std::io::Result<Node> {
        let http = resolve(&self.http).await?;
        let gevent = match &self.gevent {
            Some(gevent) => Some(resolve(gevent).await?),
            None => None,
        };
        Ok(Node {
            id: self.id.clone(),
            http,
            gevent,
            weight: self.weight,
            state,
            full: false,
            carries: false,
        })
    }
}

/// The first address of a host, IPv4 before IPv6 as Envoy's `V4_PREFERRED` has it, the least first so
/// that every sidecar finds the same.
async fn resolve(host_port: &str) -> std::io::Result<SocketAddr> {
    let addresses = tokio::net::lookup_host(host_port).await?.map(canonical);
    addresses.min().ok_or_else(|| std::io::Error::other(format!("{host_port} has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write() {
        let spec: NodeSpec = "odoo-1=127.0.0.1:8069,gevent=127.0.0.1:8072,weight=2".parse().unwrap();
        assert_eq!((spec.id.as_str(), spec.weight), ("odoo-1", 2));
        assert_eq!((spec.http.as_str(), spec.gevent.as_deref()), ("127.0.0.1:8069", Some("127.0.0.1:8072")));
        let spec: NodeSpec = "a=odoo.example:80".parse().unwrap();
        assert_eq!((spec.gevent, spec.weight), (None, 1));
        assert!("a=[::1]:8069,weight=1000".parse::<NodeSpec>().is_ok());
        let spec: NodeSpec = "a=[::ffff:127.0.0.1]:8069,gevent=[::FFFF:7f00:1]:8072".parse().unwrap();
        assert_eq!((spec.http.as_str(), spec.gevent.as_deref()), ("127.0.0.1:8069", Some("127.0.0.1:8072")));
    }

    #[test]
    fn refuses_and_says_what_it_expected() {
        for (text, expected) in [
            ("", "expected ID=HOST:PORT"),
            ("odoo-1", "expected ID=HOST:PORT"),
            ("odoo 1=127.0.0.1:1", "a node id has"),
            ("a=127.0.0.1", "address: expected HOST:PORT"),
            ("a=:8069", "address: expected HOST:PORT"),
            ("a=::1:8069", "address: expected HOST:PORT"),
            ("a=h:0", "address: expected HOST:PORT"),
            ("a=h:99999", "address: expected HOST:PORT"),
            ("a=h:1,gevent=h", "gevent: expected HOST:PORT"),
            ("a=h:1,weight=0", "weight: expected 1 to 1000"),
            ("a=h:1,weight=x", "weight: expected 1 to 1000"),
            ("a=h:1,weight=1,weight=2", "weight is given twice"),
            ("a=h:1,gevent=h:2,gevent=h:3", "gevent is given twice"),
            ("a=h:1,port=2", "unknown field \"port=2\""),
        ] {
            let error = text.parse::<NodeSpec>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
