import { fileURLToPath } from "node:url";
import { loadSync } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";

const protosFolder = fileURLToPath(new URL("../../../protos", import.meta.url));

/** Reflection over the mesh's own protos, read at run time from the files that people read. */
export function createReflection(): ReflectionService {
  const packageDefinition = loadSync(
    ["kvmesh/router/v1/router.proto", "kvmesh/worker/v1/worker.proto"],
    { includeDirs: [protosFolder], keepCase: true, longs: String, enums: String, defaults: true },
  );
  return new ReflectionService(packageDefinition);
}
