package ditcast.example;

import ditcast.v1.DiffusionServiceOuterClass.GenerateRequest;
import ditcast.v1.Generation.CacheDecision;
import ditcast.v1.Generation.GenerationEvent;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.UUID;

/** Generates a picture with a line of progress: Main 127.0.0.1:50051 "a red circle" out.png */
public final class Main {
    /** How long a cancel may take to end the stream, after Ctrl-C. */
    private static final long END_MILLIS = 10_000;

    private Main() {}

    public static void main(String[] arguments) throws IOException {
        if (arguments.length != 3) {
            System.err.println("usage: generate.jar ADDRESS PROMPT FILE");
            System.exit(2);
        }
        ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
        Client client = new Client(channel);
        // An id of one's own, so that it can be cancelled before its first event has come.
        GenerateRequest request = GenerateRequest.newBuilder()
                .setRequestId(UUID.randomUUID().toString()).setPrompt(arguments[1]).setSeed(42).build();
        Thread cancel = cancelOnInterrupt(client, request.getRequestId());
        int code = run(client, request, Path.of(arguments[2]));
        try {
            Runtime.getRuntime().removeShutdownHook(cancel);
        } catch (IllegalStateException interrupted) {
            return; // The virtual machine ends by itself, with the signal's code.
        }
        channel.shutdownNow();
        System.exit(code);
    }

    /** Have Ctrl-C cancel the generation, and let its reader see the end. */
    private static Thread cancelOnInterrupt(Client client, String requestId) {
        Thread reader = Thread.currentThread();
        Thread cancel = new Thread(() -> {
            try {
                client.cancel(requestId);
                reader.join(END_MILLIS);
            } catch (StatusRuntimeException | InterruptedException error) {
                System.err.println("not cancelled: " + error.getMessage());
            }
        });
        Runtime.getRuntime().addShutdownHook(cancel);
        return cancel;
    }

    private static int run(Client client, GenerateRequest request, Path file) throws IOException {
        try {
            Client.Result result = client.generate(request, Main::show);
            Files.write(file, result.outputs().get(0));
            System.out.printf("%s: %s, seed %d, %d steps cached%n", file,
                    result.completed().getReceipt().getOutputs(0).getMediaType(),
                    result.completed().getReceipt().getParameters().getSeed(),
                    result.completed().getCache().getCachedStepsCount());
            return 0;
        } catch (DitcastException error) {
            System.err.printf("%s (%s): %s%n", error.code, error.reason(), error.getMessage());
            error.fieldViolations().forEach((field, why) -> System.err.printf("  %s: %s%n", field, why));
            if (!error.retryDelay().isZero()) {
                System.err.printf("  try again in %d ms%n", error.retryDelay().toMillis());
            }
            return 1;
        }
    }

    /** Show a computed step as a block, one that the cache spared as a dot. */
    private static void show(GenerationEvent event) {
        switch (event.getKindCase()) {
            case STEP_COMPLETED -> System.err.print(
                    event.getStepCompleted().getCacheDecision() == CacheDecision.CACHE_DECISION_COMPUTED
                            ? "#" : ".");
            case RESTARTED -> System.err.printf("%nbegins again: %s%n", event.getRestarted().getReason());
            case COMPLETED -> System.err.println();
            default -> { }
        }
    }
}
