//! Writes the messages (by prost), and the table of RPCs with one marker type each, from the schema's
//! descriptors.

use crate::access;
use prost::Message;
use prost_build::{Config, Service, ServiceGenerator};
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::Path;
use std::rc::Rc;

/// Decodes a serialized file descriptor.
pub fn parse(bytes: &[u8]) -> Result<FileDescriptorProto, String> {
    FileDescriptorProto::decode(bytes).map_err(|e| format!("not a file descriptor: {e}"))
}

/// Writes `modal.<package>.rs` for each package and `table.rs` into `out`.
pub fn write(files: Vec<FileDescriptorProto>, out: &Path) -> Result<(), String> {
    let rows = Rc::new(RefCell::new(Rows::default()));
    Config::new()
        .bytes(["."])
        .btree_map(["."])
        .out_dir(out)
        .service_generator(Box::new(Table(rows.clone())))
        .compile_fds(FileDescriptorSet { file: files })
        .map_err(|e| format!("the schema does not compile: {e}"))?;
    let rows = rows.borrow();
    for name in access::listed() {
        if !rows.names.iter().any(|known| known == name) {
            return Err(format!("build/access.rs lists '{name}', which the schema does not have"));
        }
    }
    let table = format!(
        "/// Every RPC of both services.\npub static TABLE: [Rpc; {}] = [\n{}];\n",
        rows.names.len(),
        rows.text
    );
    std::fs::write(out.join("table.rs"), table).map_err(|e| format!("writing table.rs: {e}"))
}

#[derive(Default)]
struct Rows {
    names: Vec<String>,
    text: String,
}

/// Collects the rows of the table, and writes the marker types beside each service's messages.
struct Table(Rc<RefCell<Rows>>);

impl ServiceGenerator for Table {
    fn generate(&mut self, service: Service, buf: &mut String) {
        let mut rows = self.0.borrow_mut();
        let full_name = format!("{}.{}", service.package, service.proto_name);
        let mut markers = String::new();
        let mut impls = String::new();
        for method in &service.methods {
            let index = rows.names.len();
            let name = &method.proto_name;
            let kind = match (method.client_streaming, method.server_streaming) {
                (false, false) => "Unary",
                (false, true) => "ServerStream",
                (true, false) => "ClientStream",
                (true, true) => "Bidirectional",
            };
            let (request, reply) = (&method.input_type, &method.output_type);
            // Writing to a String cannot fail.
            let _ = writeln!(
                rows.text,
                "Rpc {{ index: {index}, name: {name:?}, service: {full_name:?}, path: \"/{full_name}/{name}\", \
                 kind: Kind::{kind}, request: {:?}, reply: {:?}, access: Access::{} }},",
                method.input_proto_type.trim_start_matches('.'),
                method.output_proto_type.trim_start_matches('.'),
                access::of(name),
            );
            let _ = writeln!(markers, "#[derive(Clone, Copy)] pub struct {name};");
            let _ = writeln!(
                impls,
                "impl crate::rpc::Method for rpc::{name} {{ type Request = {request}; type Reply = {reply}; \
                 const RPC: &'static crate::rpc::Rpc = &crate::rpc::TABLE[{index}]; }}\n\
                 impl crate::rpc::{kind}Method for rpc::{name} {{}}"
            );
            rows.names.push(name.clone());
        }
        let _ =
            writeln!(buf, "/// One type for each RPC, to name it by.\npub mod rpc {{\n{markers}}}\n{impls}");
    }
}
