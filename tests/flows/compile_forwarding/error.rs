// An error that cannot be written.
//~ errors of type `Closed` cannot cross from host to host as what they are
//~ register the message with `forward_with_text_errors`
//~ ::forward`

use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};

pub struct Order;

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = Closed;
}

#[derive(Debug)]
pub struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed")
    }
}

impl std::error::Error for Closed {}

impl From<ContextError> for Closed {
    fn from(_: ContextError) -> Closed {
        Closed
    }
}

impl Handle<String> for Order {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: String) -> Result<u64, Closed> {
        unreachable!()
    }
}

pub fn orders(host: &mut HostBuilder) -> Interface<Order> {
    host.interface(|_| Order).forward::<String>("place").register().unwrap()
}
