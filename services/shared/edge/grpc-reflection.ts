import { fileURLToPath } from "node:url";
import { loadSync } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";

const protosFolder = fileURLToPath(new URL("../../../protos", import.meta.url));

/** What routers and workers serve. */
const controlProtos = ["kvmesh/router/v1/router.proto", "kvmesh/worker/v1/worker.proto"];

/** Reflection over protos of the mesh, read at run time from the files that people read; paths are below `protos`. */
export function createReflection(protos: readonly string[] = controlProtos): ReflectionService {
  const packageDefinition = loadSync([...protos], {
    includeDirs: [protosFolder],
    keepCase: true,
    longs: String,
    enums: String,
    defaults: true,
  });
  return new ReflectionService(packageDefinition);
}
