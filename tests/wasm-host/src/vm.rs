//! One VM: an instance of the module with its root context, as each of Envoy's threads has one.

use std::{
    cell::{Ref, RefCell, RefMut},
    collections::BTreeMap,
    fmt,
    rc::Rc,
    time::Duration,
};

use anyhow::Result;
use wasmtime::{Instance, Linker, Store, TypedFunc, WasmParams, WasmResults};

use crate::{
    abi::{HOSTCALLS, Status},
    faults::Faults,
    headers::Headers,
    imports,
    module::Filter,
    state::{Answer, Call, LogLine, ROOT, State},
    stream::Stream,
    world::World,
};

/// The module refused its configuration; Envoy would not start, or keep the old one.
#[derive(Debug)]
pub struct Refused {
    /// What it logged.
    pub logs: Vec<LogLine>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the filter refused its configuration")?;
        self.logs.iter().try_for_each(|line| write!(f, "\n{:?}: {}", line.level, line.message))
    }
}

impl std::error::Error for Refused {}

/// The functions through which Envoy enters the module.
struct Exports {
    context_create: TypedFunc<(u32, u32), ()>,
    vm_start: TypedFunc<(u32, u32), u32>,
    configure: TypedFunc<(u32, u32), u32>,
    tick: TypedFunc<u32, ()>,
    request_headers: TypedFunc<(u32, u32, u32), u32>,
    response_headers: TypedFunc<(u32, u32, u32), u32>,
    http_call_response: TypedFunc<(u32, u32, u32, u32, u32), ()>,
    /// These two may be missing: Envoy enters a module only where it lets it in.
    done: Option<TypedFunc<u32, u32>>,
    log: Option<TypedFunc<u32, ()>>,
    delete: TypedFunc<u32, ()>,
}

impl Exports {
    fn of(instance: &Instance, store: &mut Store<State>) -> wasmtime::Result<Self> {
        Ok(Self {
            context_create: instance.get_typed_func(&mut *store, "proxy_on_context_create")?,
            vm_start: instance.get_typed_func(&mut *store, "proxy_on_vm_start")?,
            configure: instance.get_typed_func(&mut *store, "proxy_on_configure")?,
            tick: instance.get_typed_func(&mut *store, "proxy_on_tick")?,
            request_headers: instance.get_typed_func(&mut *store, "proxy_on_request_headers")?,
            response_headers: instance.get_typed_func(&mut *store, "proxy_on_response_headers")?,
            http_call_response: instance.get_typed_func(&mut *store, "proxy_on_http_call_response")?,
            done: instance.get_typed_func(&mut *store, "proxy_on_done").ok(),
            log: instance.get_typed_func(&mut *store, "proxy_on_log").ok(),
            delete: instance.get_typed_func(&mut *store, "proxy_on_delete")?,
        })
    }
}

pub(crate) struct Machine {
    pub(crate) store: Store<State>,
    exports: Exports,
    next_context: u32,
    is_dead: bool,
}

impl Machine {
    fn start(filter: &Filter, world: Rc<World>, configuration: &[u8]) -> Result<Self> {
        let mut store = Store::new(&filter.engine, State::new(world, configuration.to_vec()));
        let mut linker = Linker::new(&filter.engine);
        imports::link(&mut linker, &filter.module)?;
        let instance = linker.instantiate(&mut store, &filter.module)?;
        let allocate = instance.get_typed_func(&mut store, "proxy_on_memory_allocate")?;
        store.data_mut().memory = instance.get_memory(&mut store, "memory");
        store.data_mut().allocate = Some(allocate);
        instance.get_typed_func::<(), ()>(&mut store, "_initialize")?.call(&mut store, ())?;
        let exports = Exports::of(&instance, &mut store)?;
        let mut machine = Self { store, exports, next_context: ROOT + 1, is_dead: false };

        machine.enter(ROOT, |e| &e.context_create, (ROOT, 0));
        let is_started = machine.enter(ROOT, |e| &e.vm_start, (ROOT, 0));
        let size = configuration.len() as u32;
        if is_started == 0 || machine.enter(ROOT, |e| &e.configure, (ROOT, size)) == 0 {
            return Err(Refused { logs: machine.store.data().logs.clone() }.into());
        }
        Ok(machine)
    }

    /// Calls the module on behalf of `context`.
    fn enter<P: WasmParams, R: WasmResults>(
        &mut self,
        context: u32,
        export: impl Fn(&Exports) -> &TypedFunc<P, R>,
        arguments: P,
    ) -> R {
        assert!(!self.is_dead, "the module trapped before");
        let state = self.store.data_mut();
        (state.current, state.effective) = (context, 0);
        match export(&self.exports).call(&mut self.store, arguments) {
            Ok(result) => result,
            Err(error) => {
                self.is_dead = true;
                let log: Vec<_> = self.store.data().logs.iter().map(|line| line.message.as_str()).collect();
                panic!("the module trapped: {error:#}\nit logged:\n{}", log.join("\n"));
            }
        }
    }

    pub(crate) fn create(&mut self, context: u32) {
        self.store.data_mut().streams.entry(context).or_default();
        self.enter(context, |e| &e.context_create, (context, ROOT));
    }

    pub(crate) fn request_headers(&mut self, context: u32, count: u32) -> u32 {
        self.enter(context, |e| &e.request_headers, (context, count, 1))
    }

    pub(crate) fn response_headers(&mut self, context: u32, count: u32) -> u32 {
        self.enter(context, |e| &e.response_headers, (context, count, 0))
    }

    /// Ends a stream as Envoy does: it logs, then it deletes the context.
    pub(crate) fn delete(&mut self, context: u32) {
        if self.exports.log.is_some() {
            self.enter(context, |e| e.log.as_ref().unwrap(), context);
        }
        if self.exports.done.is_some() {
            self.enter(context, |e| e.done.as_ref().unwrap(), context);
        }
        self.enter(context, |e| &e.delete, context);
        self.store.data_mut().streams.remove(&context);
    }

    fn answer(&mut self, token: u32, answer: Answer) {
        let state = self.store.data_mut();
        assert!(state.calls.remove(&token).is_some(), "no call {token} is under way");
        let sizes = answer.headers.as_ref().map_or((0, 0), |h| (h.len() as u32, answer.body.len() as u32));
        state.answer = Some(answer);
        // Whoever made a call, in Envoy it is the root context's, and so is the answer.
        self.enter(ROOT, |e| &e.http_call_response, (ROOT, token, sizes.0, sizes.1, 0));
        self.store.data_mut().answer = None;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead
    }
}

/// A VM. Clones are the same VM.
///
/// Where the module traps, the method panics with what it logged: in Envoy all requests of a thread
/// would be lost.
#[derive(Clone)]
pub struct Vm(Rc<RefCell<Machine>>);

impl Vm {
    pub(crate) fn start(filter: &Filter, world: Rc<World>, configuration: &[u8]) -> Result<Self> {
        Ok(Self(Rc::new(RefCell::new(Machine::start(filter, world, configuration)?))))
    }

    pub(crate) fn machine(&self) -> RefMut<'_, Machine> {
        self.0.borrow_mut()
    }

    pub(crate) fn state(&self) -> Ref<'_, State> {
        Ref::map(self.0.borrow(), |machine| machine.store.data())
    }

    pub(crate) fn state_mut(&self) -> RefMut<'_, State> {
        RefMut::map(self.0.borrow_mut(), |machine| machine.store.data_mut())
    }

    /// A new stream; its context begins with its request, as in Envoy.
    pub fn stream(&self) -> Stream {
        let mut machine = self.machine();
        let id = machine.next_context;
        machine.next_context += 1;
        drop(machine);
        Stream::new(self.clone(), id)
    }

    /// Lets the root context tick.
    pub fn tick(&self) {
        self.machine().enter(ROOT, |e| &e.tick, ROOT);
    }

    /// Ends the root context, as Envoy does with a configuration that was replaced.
    pub fn end(&self) {
        self.machine().enter(ROOT, |e| &e.delete, ROOT);
    }

    /// How often the module wants to tick.
    pub fn tick_period(&self) -> Option<Duration> {
        self.state().tick_period
    }

    /// The calls that wait for an answer, the oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.values().cloned().collect()
    }

    /// The calls that wait for an answer and go to a path that begins so.
    pub fn calls_to(&self, path: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.path().starts_with(path)).collect()
    }

    /// How many calls were made, answered or not.
    pub fn calls_made(&self) -> u64 {
        self.state().calls_made
    }

    /// Answers a call.
    pub fn answer(&self, token: u32, status: u16, body: impl AsRef<[u8]>) {
        let headers = Headers::new(&[(":status", status.to_string())]);
        self.answer_with(token, headers, body);
    }

    /// Answers a call with headers of one's own.
    pub fn answer_with(&self, token: u32, headers: Headers, body: impl AsRef<[u8]>) {
        let answer = Answer { headers: Some(headers), body: body.as_ref().to_vec() };
        self.machine().answer(token, answer);
    }

    /// Ends a call without an answer: Envoy says so when the cluster is taken away or the connection
    /// breaks in the middle of the answer.
    pub fn reset_call(&self, token: u32) {
        self.machine().answer(token, Answer { headers: None, body: Vec::new() });
    }

    /// Refuses every call at once: `BadArgument` as for an unknown cluster, `InternalFailure` as for
    /// one without endpoints; `None` accepts them again.
    pub fn refuse_calls(&self, refusal: Option<Status>) {
        self.state_mut().refusal = refusal;
    }

    /// Lets hostcalls fail now and then.
    pub fn set_faults(&self, faults: Option<Faults>) {
        self.state_mut().faults = faults;
    }

    /// What the module logged and printed.
    pub fn logs(&self) -> Vec<LogLine> {
        self.state().logs.clone()
    }

    /// The size of the module's memory.
    pub fn memory_bytes(&self) -> usize {
        let machine = self.0.borrow();
        machine.store.data().memory.map_or(0, |memory| memory.data_size(&machine.store))
    }

    /// The hostcalls made since [`Self::forget_hostcalls`], by name; none that was not made.
    pub fn hostcalls(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.state().counts;
        HOSTCALLS.iter().copied().zip(counts).filter(|(_, count)| *count != 0).collect()
    }

    /// Begins to count hostcalls anew.
    pub fn forget_hostcalls(&self) {
        self.state_mut().counts = [0; HOSTCALLS.len()];
    }

    /// Begins to measure the time spent in hostcalls, or ends it.
    pub fn measure_hostcalls(&self, is_measured: bool) {
        self.state_mut().spent = is_measured.then_some(Duration::ZERO);
    }

    /// The time spent in hostcalls since it is measured.
    pub fn time_in_hostcalls(&self) -> Duration {
        self.state().spent.unwrap_or_default()
    }
}
