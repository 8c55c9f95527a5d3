mod decide;
pub(crate) mod disk;
pub(crate) mod layout;
pub(crate) mod seal;
pub(crate) mod snapshot;
mod watch;
