//! A small proxy-wasm host: it runs the real filter (`mooring.wasm`) without Envoy, so that a test can
//! play Envoy's part step by step, and a benchmark measures the module and nothing else.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let host = wasm_host::Host::new()?;
//! let vm = host.vm(r#"{"nodes": [{"id": "odoo-1", "http": "127.0.0.1:8069"}]}"#)?;
//! let mut stream = vm.stream();
//! stream.request(&[(":path", "/web"), ("cookie", "session_id=abc")]);
//! assert_eq!(stream.request_header("x-mooring-upstream").as_deref(), Some("MTI3LjAuMC4xOjgwNjk="));
//! # Ok(())
//! # }
//! ```
//!
//! It does what Envoy's host does where the filter could notice, and no more: header maps are there only
//! while Envoy shows them, a refused call has no callback, and so on.
//!
//! | module | what |
//! |---|---|
//! | `abi` | the ABI's numbers and names |
//! | `faults` | hostcalls that fail now and then |
//! | `guest` | the module's memory, and what every hostcall has in common |
//! | `headers` | header maps |
//! | `imports`, `wasi` | the hostcalls |
//! | `module` | finding and compiling the filter |
//! | `state` | what one VM's hostcalls see |
//! | `stream` | one request and its response |
//! | `vm` | one instance with its root context |
//! | `world` | what all VMs share |

// A test's helper: to panic is how it reports.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod abi;
mod faults;
mod guest;
mod headers;
mod imports;
mod module;
mod state;
mod stream;
mod vm;
mod wasi;
mod world;

use std::rc::Rc;

use anyhow::Result;

pub use abi::{Action, LogLevel, Status};
pub use faults::Faults;
pub use headers::Headers;
pub use module::Filter;
pub use state::{Call, LogLine};
pub use stream::Stream;
pub use vm::{Refused, Vm};

/// One Envoy: the clock, the shared data and the metrics that its VMs share.
pub struct Host {
    filter: &'static Filter,
    world: Rc<world::World>,
}

impl Host {
    /// An Envoy with empty shared data.
    ///
    /// # Errors
    /// If the filter is not built ([`Filter::load`]).
    pub fn new() -> Result<Self> {
        Ok(Self { filter: Filter::load()?, world: Rc::new(world::World::new()) })
    }

    /// Starts a VM with a plugin configuration.
    ///
    /// # Errors
    /// [`Refused`], with what the filter logged.
    pub fn vm(&self, configuration: impl AsRef<[u8]>) -> Result<Vm> {
        Vm::start(self.filter, Rc::clone(&self.world), configuration.as_ref())
    }

    /// Lets later VMs see an environment variable, as Envoy does with those that `host_env_keys` names.
    pub fn set_variable(&self, name: &str, value: &str) {
        self.world.environment.borrow_mut().push(format!("{name}={value}"));
    }

    /// The time in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.world.now_ms()
    }

    /// Sets the time. Time stands still but for a nanosecond each time that a VM looks.
    pub fn set_now_ms(&self, now_ms: u64) {
        self.world.set_now_ms(now_ms);
    }

    /// Lets time pass.
    pub fn advance_ms(&self, by: u64) {
        self.world.advance_ms(by);
    }

    /// The value of a metric, in all VMs together.
    pub fn metric(&self, name: &str) -> Option<i64> {
        self.world.metrics.borrow().get(name)
    }

    /// The names of all metrics that were defined.
    pub fn metrics(&self) -> Vec<String> {
        self.world.metrics.borrow().names()
    }

    /// The keys of the shared data.
    pub fn shared_keys(&self) -> Vec<String> {
        self.world.shared.borrow().keys()
    }

    /// The bytes of the shared data, keys included.
    pub fn shared_bytes(&self) -> usize {
        self.world.shared.borrow().bytes()
    }

    /// Sets a value in the shared data, as a VM of another version might.
    pub fn set_shared(&self, key: &str, value: &[u8]) {
        // Without a number to compare it cannot fail.
        let _ = self.world.shared.borrow_mut().set(key.as_bytes(), value, 0);
    }

    /// Forgets the shared data, as an Envoy that restarts.
    pub fn forget_shared(&self) {
        self.world.shared.borrow_mut().clear();
    }
}
