//! Who is behind the gateway bridge cannot have what is sent to the host's VXLAN port come to itself.

use vtepd::lab::Lab;

use crate::hosts::{applied, in_private, put, registered, start};

/// From the VXLAN port to a port of another host, so that what that port sends to the VXLAN port of this host would be an answer;
/// then from another port, until there is an answer to that. What has come by then is told.
const INSIDE: &str = r#"
import socket, sys
def at(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", port))
    s.settimeout(0.2)
    return s
thief, other = at(4789), at(5000)
for attempt in range(100):
    thief.sendto(b"mine", (sys.argv[1], 45000))
    other.sendto(b"hello", (sys.argv[1], 45001))
    try:
        print(other.recv(100).decode(), end="")
        break
    except TimeoutError:
        pass
thief.setblocking(False)
try:
    print(" and", thief.recv(100).decode(), end="")
except BlockingIOError:
    pass
"#;

const OUTSIDE: &str = r#"
import socket
frame, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
frame.bind(("0.0.0.0", 45000))
other.bind(("0.0.0.0", 45001))
other.settimeout(30)
_, host = other.recvfrom(100)
frame.sendto(b"a frame of others", (host[0], 4789))
other.sendto(b"answer", host)
"#;

#[test]
fn what_is_sent_to_the_vxlan_port_of_the_host_is_never_an_answer_to_an_endpoint() {
    in_private!();
    let lab = Lab::new().unwrap();
    let (here, there) = (&lab.hosts[0], &lab.hosts[1]);
    here.add_netns("c").unwrap();
    put(&lab, "networks/n", r#"{"subnets":[{"cidr":"10.7.0.0/24","vni":256}]}"#);
    put(&lab, "endpoints/n/docker-node1/c", r#"{"ip":["10.7.0.2"],"netns":"/run/netns/c"}"#);
    let mut agents = vec![start(&lab, here)];
    registered(&lab, &mut agents);
    applied(&lab, &mut agents);
    let to = there.address().to_string();
    let told = std::thread::scope(|scope| {
        let outside = scope.spawn(|| there.run(&["python3", "-c", OUTSIDE]).unwrap());
        let told = here.in_netns("c", &["python3", "-c", INSIDE, &to]).unwrap();
        outside.join().unwrap();
        told
    });
    assert_eq!(told, "answer");
}
