import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";

/** Where on the way of a request through the gate something is to happen. */
export type GatePoint = "connected" | "asked" | "passed_on" | "answered";

/**
 * A door before an engine's HTTP port that can act at exact points of a request's way: `connected` before a byte of it, `asked`
 * before the engine sees a byte, `passed_on` when the engine has its beginning, `answered` before a byte of the answer leaves.
 * At the point it calls back once and, but for `passed_on`, lets nothing of that connection through any more.
 */
export class PrefillGate {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #armed: { readonly point: GatePoint; readonly act: () => void } | undefined;
  /** Port of the engine. */
  target = 0;

  private constructor() {
    this.#server = createServer((socket) => {
      this.#pass(socket);
    });
  }

  /** Opens a door on a free port of loopback. */
  static async open(): Promise<PrefillGate> {
    const gate = new PrefillGate();
    await new Promise<void>((resolve) => gate.#server.listen(0, "127.0.0.1", resolve));
    return gate;
  }

  get address(): string {
    return `127.0.0.1:${String((this.#server.address() as AddressInfo).port)}`;
  }

  /** Resolves when a request has come to a point, and `act` was called. Connections that wait for requests are closed. */
  at(point: GatePoint, act: () => void): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    return new Promise((resolve) => {
      this.#armed = {
        point,
        act: () => {
          act();
          resolve();
        },
      };
    });
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #reached(point: GatePoint): boolean {
    const armed = this.#armed;
    if (armed?.point !== point) return false;
    this.#armed = undefined;
    armed.act();
    return true;
  }

  #pass(client: Socket): void {
    this.#keep(client);
    if (this.#reached("connected")) {
      client.destroy();
      return;
    }
    const engine = connect(this.target, "127.0.0.1");
    this.#keep(engine);
    const both = (): void => {
      client.destroy();
      engine.destroy();
    };
    client.on("close", both);
    engine.on("close", both);
    client.on("data", (part: Buffer) => {
      if (this.#reached("asked")) both();
      else
        engine.write(part, () => {
          this.#reached("passed_on");
        });
    });
    engine.on("data", (part: Buffer) => {
      if (this.#reached("answered")) both();
      else client.write(part);
    });
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => this.#sockets.delete(socket));
  }
}
