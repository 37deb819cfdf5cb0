// An interface that is as it has to be.

use stable_interfaces::{Context, ContextError, Handle, HostBuilder, Interface, StableInterface};

pub struct Order;

impl StableInterface for Order {
    const NAME: &'static str = "order";
    type Error = ContextError;
}

impl Handle<String> for Order {
    type Reply = u64;

    async fn handle(&mut self, _: &mut Context, _: String) -> Result<u64, ContextError> {
        unreachable!()
    }
}

pub fn orders(host: &mut HostBuilder) -> Interface<Order> {
    host.interface(|_| Order).forward::<String>("place").register().unwrap()
}
