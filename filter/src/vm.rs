//! One VM: the roots that Envoy made in it, one a configuration, and the streams under way.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

use crate::{host, root::Root, stream::Stream};

/// What Envoy is to do with a stream's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Action {
    /// Pass them on.
    Continue = 0,
    /// Hold them until the stream is resumed.
    Pause = 1,
}

/// Contexts by the numbers that Envoy gives them, which grow: a tree of a few is quicker than hashing.
#[derive(Default)]
pub(crate) struct Vm {
    roots: BTreeMap<u32, Root>,
    streams: BTreeMap<u32, Stream>,
    /// The streams that wait for an answer, by its token.
    waiting: BTreeMap<u32, u32>,
}

thread_local! {
    static VM: RefCell<Vm> = RefCell::default();
}

/// Runs what Envoy entered for. None if it entered for that already, which it does not.
pub(crate) fn enter<T>(call: impl FnOnce(&mut Vm) -> T) -> Option<T> {
    VM.with(|vm| vm.try_borrow_mut().ok().map(|mut vm| call(&mut vm)))
}

impl Vm {
    /// A new context: a root, or a stream of `root`.
    pub(crate) fn create(&mut self, context: u32, root: u32) {
        if root == 0 {
            self.roots.insert(context, Root::new());
        } else if let Some(state) = self.roots.get(&root).and_then(Root::state) {
            // Envoy gives no request to a filter whose configuration was refused.
            self.streams.insert(context, Stream::new(Rc::clone(state)));
        }
    }

    pub(crate) fn delete(&mut self, context: u32) {
        match self.streams.remove(&context) {
            Some(stream) => {
                if let Some(token) = stream.awaits() {
                    self.waiting.remove(&token);
                }
            }
            None => {
                if let Some(root) = self.roots.remove(&context) {
                    root.retire();
                }
            }
        }
    }

    pub(crate) fn configure(&mut self, root: u32) -> bool {
        self.roots.get_mut(&root).is_some_and(Root::configure)
    }

    pub(crate) fn tick(&mut self, root: u32) {
        if let Some(root) = self.roots.get_mut(&root) {
            root.tick();
        }
    }

    pub(crate) fn request(&mut self, stream: u32, has_body: bool) -> Action {
        self.with_stream(stream, |stream| stream.request(has_body))
    }

    pub(crate) fn response(&mut self, stream: u32) -> Action {
        self.with_stream(stream, Stream::response)
    }

    fn with_stream(&mut self, id: u32, call: impl FnOnce(&mut Stream) -> Action) -> Action {
        let Some(stream) = self.streams.get_mut(&id) else { return Action::Continue };
        let action = call(stream);
        if let Some(token) = stream.awaits() {
            self.waiting.insert(token, id);
        }
        action
    }

    /// The answer to a call came, or will not come: then it has no headers.
    pub(crate) fn answered(&mut self, root: u32, token: u32, headers: usize) {
        let answer = host::call_answer(headers);
        if let Some(id) = self.waiting.remove(&token) {
            if let (Some(stream), Ok(())) = (self.streams.get_mut(&id), host::act_for(id)) {
                stream.answered(token, answer);
                if let Some(next) = stream.awaits() {
                    self.waiting.insert(next, id);
                }
            }
        } else if let Some(root) = self.roots.get_mut(&root) {
            root.answered(token, answer);
        }
    }
}
