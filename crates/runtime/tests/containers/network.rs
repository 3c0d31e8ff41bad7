//! Containers reach the machine and the world, not each other; their listeners are theirs alone.

use crate::machine::{Box, Machine};
use evoke_runtime::{ListenerSpec, Network, Runtime};
use std::io::{Read, Write};

const CONNECT: &str = "import socket,sys; s=socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print(s.recv(9).decode())";

async fn address(container: &Box) -> String {
    let hosts = container.sh("grep evoke /etc/hosts").await.out;
    hosts.split_whitespace().next().unwrap().to_owned()
}

pub async fn reaches_the_bridge_and_no_other_container(machine: &Machine) {
    let mut containers = Vec::new();
    for id in ["a", "b"] {
        let mut spec = machine.spec(id);
        spec.network = Network::Bridged;
        containers.push(machine.launch(spec).await);
    }
    let [a, b] = &containers[..] else { unreachable!() };
    let (address_a, address_b) = (address(a).await, address(b).await);
    assert_ne!(address_a, address_b);
    let mut links = a.sh("ls /sys/class/net").await.out.lines().map(str::to_owned).collect::<Vec<_>>();
    links.sort();
    assert_eq!(links, ["eth0", "lo"]);
    let gateway: std::net::Ipv4Addr = address_a.parse().unwrap();
    let gateway = std::net::Ipv4Addr::from((u32::from(gateway) & !0xFFF) + 1);

    // The machine's address on the bridge.
    let listener = std::net::TcpListener::bind((gateway, 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let greeter = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"hello").unwrap());
    let ran = a.run(&["python3", "-c", CONNECT, &gateway.to_string(), &port]).await;
    assert_eq!(ran.out, "hello");
    greeter.join().unwrap();

    // The machine's own loopback is out of reach.
    let local = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = local.local_addr().unwrap().port().to_string();
    assert_ne!(a.run(&["python3", "-c", CONNECT, "127.0.0.1", &port]).await.code, Some(0));

    // A neighbour's open port is not.
    let serve = "import socket; s=socket.socket(); s.bind(('0.0.0.0', 80)); s.listen(); print('up', flush=True); s.settimeout(20); s.accept()[0].sendall(b'leak')";
    let (read, write) = rustix::pipe::pipe().unwrap();
    let argv = ["python3", "-c", serve].map(str::to_owned).to_vec();
    let spec = evoke_runtime::ProcessSpec::new(argv, write.try_clone().unwrap(), write);
    b.guest.spawn(spec).await.unwrap();
    let up = tokio::task::spawn_blocking(move || {
        let mut text = [0u8; 2];
        std::fs::File::from(read).read_exact(&mut text).unwrap();
        text
    });
    assert_eq!(&up.await.unwrap(), b"up", "low ports are open to root");
    let from_a = a.run(&["python3", "-c", CONNECT, &address_b, "80"]).await;
    assert_ne!(from_a.code, Some(0), "{from_a:?}");
    // From the machine it is there, so the test above means something.
    let mut text = String::new();
    let socket = std::net::TcpStream::connect_timeout(
        &format!("{address_b}:80").parse().unwrap(),
        std::time::Duration::from_secs(3),
    );
    socket.unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "leak");
    for id in ["a", "b"] {
        machine.runtime.destroy(id).await.unwrap();
    }
}

pub async fn listeners_are_open_from_the_start(machine: &Machine) {
    let mut spec = machine.spec("a");
    spec.listeners =
        vec![ListenerSpec::Tcp { port: 5000 }, ListenerSpec::Unix { path: "/__evoke/control".into() }];
    let mut a = machine.launch(spec).await;
    let unix = std::os::unix::net::UnixListener::from(a.listeners.pop().unwrap());
    let tcp = std::net::TcpListener::from(a.listeners.pop().unwrap());
    let serve = |accept: std::boxed::Box<dyn Fn() -> std::io::Result<std::boxed::Box<dyn Write>> + Send>| {
        std::thread::spawn(move || {
            loop {
                match accept() {
                    Ok(mut stream) => return stream.write_all(b"hello").unwrap(),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        })
    };
    let one = serve(std::boxed::Box::new(move || Ok(std::boxed::Box::new(tcp.accept()?.0))));
    let two = serve(std::boxed::Box::new(move || Ok(std::boxed::Box::new(unix.accept()?.0))));
    assert_eq!(a.run(&["python3", "-c", CONNECT, "127.0.0.1", "5000"]).await.out, "hello");
    let connect = "import socket; s=socket.socket(socket.AF_UNIX); s.connect('/__evoke/control'); print(s.recv(9).decode())";
    assert_eq!(a.run(&["python3", "-c", connect]).await.out, "hello");
    one.join().unwrap();
    two.join().unwrap();
    machine.runtime.destroy("a").await.unwrap();
}
