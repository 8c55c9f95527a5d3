//! The numbers and names of the proxy-wasm ABI 0.2.1, as far as the filter uses it.

/// What a hostcall returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// There is no such thing.
    NotFound = 1,
    /// There cannot be such a thing, now or ever.
    BadArgument = 2,
    /// A value has no form in bytes.
    SerializationFailure = 3,
    /// A pointer outside the module's memory.
    InvalidMemoryAccess = 6,
    /// Somebody replaced the value first.
    CasMismatch = 8,
    /// The host failed.
    InternalFailure = 10,
}

/// What the module wants done with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on.
    Continue,
    /// Wait until the module resumes it.
    Pause,
}

/// How urgent a line in the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// 0
    Trace,
    /// 1
    Debug,
    /// 2
    Info,
    /// 3
    Warn,
    /// 4; also what the module writes to its standard error.
    Error,
    /// 5
    Critical,
}

impl LogLevel {
    pub(crate) fn of(number: u32) -> Option<Self> {
        [Self::Trace, Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Critical]
            .get(number as usize)
            .copied()
    }
}

/// The header maps that this host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Map {
    Request,
    Response,
    CallResponse,
}

impl Map {
    pub(crate) fn of(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Request),
            2 => Some(Self::Response),
            6 => Some(Self::CallResponse),
            _ => None,
        }
    }
}

pub(crate) const CALL_RESPONSE_BODY: u32 = 4;
pub(crate) const PLUGIN_CONFIGURATION: u32 = 7;
pub(crate) const REQUEST_STREAM: u32 = 0;
pub(crate) const RESPONSE_STREAM: u32 = 1;

macro_rules! hostcalls {
    ($($variant:ident = $name:literal,)*) => {
        /// The functions that this host offers, to count calls of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Hostcall {
            $($variant,)*
        }

        /// Their names in the order of [`Hostcall`].
        pub(crate) const HOSTCALLS: &[&str] = &[$($name,)*];
    };
}

hostcalls! {
    Log = "proxy_log",
    CurrentTime = "proxy_get_current_time_nanoseconds",
    SetTickPeriod = "proxy_set_tick_period_milliseconds",
    GetBuffer = "proxy_get_buffer_bytes",
    GetProperty = "proxy_get_property",
    GetHeader = "proxy_get_header_map_value",
    GetHeaders = "proxy_get_header_map_pairs",
    ReplaceHeader = "proxy_replace_header_map_value",
    RemoveHeader = "proxy_remove_header_map_value",
    GetShared = "proxy_get_shared_data",
    SetShared = "proxy_set_shared_data",
    HttpCall = "proxy_http_call",
    SetEffectiveContext = "proxy_set_effective_context",
    ContinueStream = "proxy_continue_stream",
    DefineMetric = "proxy_define_metric",
    IncrementMetric = "proxy_increment_metric",
    RecordMetric = "proxy_record_metric",
    FdWrite = "fd_write",
    Random = "random_get",
    Environment = "environ_get",
    EnvironmentSizes = "environ_sizes_get",
}
