/** A part of Envoy's configuration, as its JSON form has it. */
export type Config = Readonly<Record<string, unknown>>;

/** A named extension with the message type that selects it. */
export function extension(name: string, type: string, fields: Config = {}): Config {
  return { name, typed_config: typed(type, fields) };
}

/** A message with its type, as `google.protobuf.Any` is written in JSON. */
export function typed(type: string, fields: Config = {}): Config {
  return { "@type": `type.googleapis.com/${type}`, ...fields };
}

/** Milliseconds as Envoy writes durations. */
export function duration(ms: number): string {
  return `${(ms / 1_000).toString()}s`;
}
