// What a connection carries that cannot be written.
//~ `Word` cannot cross from host to host
//~ derive `serde::Serialize` and `serde::Deserialize` for it
//~ required by a bound in `InterfaceBuilder::<'a, I>::forward_connections`

use stable_interfaces::{
    Connecting, ConnectionId, Context, ContextError, HostBuilder, Interface, OnConnect, StableInterface,
};

pub struct Room;

impl StableInterface for Room {
    const NAME: &'static str = "room";
    type Error = ContextError;
}

pub struct Word;

impl OnConnect for Room {
    type Meta = ();
    type Incoming = String;
    type Outgoing = Word;

    async fn on_connect(&mut self, _: &mut Context, _: &mut Connecting<Word>, _: ()) -> Result<(), ContextError> {
        unreachable!()
    }

    async fn on_receive(&mut self, _: &mut Context, _: ConnectionId, _: String) -> Result<(), ContextError> {
        unreachable!()
    }
}

pub fn rooms(host: &mut HostBuilder) -> Interface<Room> {
    host.interface(|_| Room).forward_connections().register().unwrap()
}
