//! Which of a node's two ports a request is for.

/// A node's port: Odoo's worker processes, or its gevent process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Everything that is not a bus.
    Http,
    /// `/websocket` (Odoo 16 and later) and `/longpolling/` (15 and older): the HTTP port answers
    /// them with an error.
    Gevent,
}

impl Port {
    /// The port for a request target such as `/websocket?version=18.0-7`.
    pub fn of_path(path: &[u8]) -> Self {
        let websocket = path
            .strip_prefix(b"/websocket")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b'?' | b'#')));
        if websocket || path.starts_with(b"/longpolling/") { Self::Gevent } else { Self::Http }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bus_goes_to_gevent() {
        for path in ["/websocket", "/websocket?version=1", "/websocket/health", "/longpolling/poll"] {
            assert_eq!(Port::of_path(path.as_bytes()), Port::Gevent, "{path}");
        }
        for path in ["/", "", "/web", "/websockets", "/longpolling", "/web/websocket", "/odoo?x=/websocket"] {
            assert_eq!(Port::of_path(path.as_bytes()), Port::Http, "{path}");
        }
    }
}
