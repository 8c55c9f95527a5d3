//! One request and its response.

use std::thread;

use crate::{
    abi::Action,
    headers::Headers,
    state::{Side, StreamState},
    vm::Vm,
};

/// Who is connected unless a test says otherwise.
const SOURCE_ADDRESS: &[u8] = b"192.0.2.1:40000";

/// A stream of a VM. It ends when it is dropped.
pub struct Stream {
    vm: Vm,
    id: u32,
    source_address: Option<Vec<u8>>,
    is_begun: bool,
}

impl Stream {
    pub(crate) fn new(vm: Vm, id: u32) -> Self {
        Self { vm, id, source_address: Some(SOURCE_ADDRESS.to_vec()), is_begun: false }
    }

    /// The id of its context.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Sets the property `source.address`, or takes it away.
    #[must_use]
    pub fn from_address(mut self, address: Option<&str>) -> Self {
        self.source_address = address.map(|address| address.as_bytes().to_vec());
        self
    }

    /// Creates the context and shows it nothing.
    pub fn begin(&mut self) {
        self.is_begun = true;
        self.vm.machine().create(self.id);
    }

    /// Creates the context and shows the module the request's headers.
    pub fn request<N: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, headers: &[(N, V)]) -> Action {
        self.request_headers_are(Headers::new(headers))
    }

    /// The same with headers that are ready.
    pub fn request_headers_are(&mut self, headers: Headers) -> Action {
        let count = headers.len() as u32;
        self.begin();
        let mut machine = self.vm.machine();
        if let Some(stream) = machine.store.data_mut().streams.get_mut(&self.id) {
            stream.source_address = self.source_address.take();
            open(&mut stream.request, headers);
        }
        let action = machine.request_headers(self.id, count);
        let stream = machine.store.data_mut().streams.get_mut(&self.id);
        stream.map_or(Action::Continue, |stream| close(&mut stream.request, action))
    }

    /// Shows the module the response's headers.
    pub fn response<N: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, headers: &[(N, V)]) -> Action {
        self.response_headers_are(Headers::new(headers))
    }

    /// The same with headers that are ready.
    pub fn response_headers_are(&mut self, headers: Headers) -> Action {
        let count = headers.len() as u32;
        let mut machine = self.vm.machine();
        if let Some(stream) = machine.store.data_mut().streams.get_mut(&self.id) {
            open(&mut stream.response, headers);
        }
        let action = machine.response_headers(self.id, count);
        let stream = machine.store.data_mut().streams.get_mut(&self.id);
        stream.map_or(Action::Continue, |stream| close(&mut stream.response, action))
    }

    /// The first value of one of the request's headers, as the module left it.
    pub fn request_header(&self, name: &str) -> Option<String> {
        self.look(|stream| value(&stream.request, name))
    }

    /// The first value of one of the response's headers, as the module left it.
    pub fn response_header(&self, name: &str) -> Option<String> {
        self.look(|stream| value(&stream.response, name))
    }

    /// The request's headers, as the module left them.
    pub fn request_headers(&self) -> Headers {
        self.look(|stream| stream.request.headers.clone())
    }

    /// The response's headers, as the module left them.
    pub fn response_headers(&self) -> Headers {
        self.look(|stream| stream.response.headers.clone())
    }

    /// Whether the request waits for the module.
    pub fn is_request_paused(&self) -> bool {
        self.look(|stream| stream.request.is_paused)
    }

    /// Whether the response waits for the module.
    pub fn is_response_paused(&self) -> bool {
        self.look(|stream| stream.response.is_paused)
    }

    /// How often the module resumed the request and the response.
    pub fn resumed(&self) -> (u32, u32) {
        self.look(|stream| (stream.request.resumed, stream.response.resumed))
    }

    /// Ends the stream, whatever is under way.
    pub fn end(self) {}

    fn look<T: Default>(&self, look: impl FnOnce(&StreamState) -> T) -> T {
        self.vm.state().streams.get(&self.id).map(look).unwrap_or_default()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut machine = self.vm.machine();
        if self.is_begun && !machine.is_dead() && !thread::panicking() {
            machine.delete(self.id);
        }
    }
}

fn value(side: &Side, name: &str) -> Option<String> {
    side.headers.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
}

fn open(side: &mut Side, headers: Headers) {
    *side = Side { headers, is_open: true, is_paused: false, resumed: 0 };
}

/// Envoy takes the headers from the module unless it wants to wait.
fn close(side: &mut Side, action: u32) -> Action {
    side.is_paused = action != 0 && side.resumed == 0;
    if action == 0 {
        side.is_open = false;
        return Action::Continue;
    }
    Action::Pause
}
