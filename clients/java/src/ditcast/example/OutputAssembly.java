package ditcast.example;

import ditcast.v1.Generation.OutputChunk;
import ditcast.v1.Generation.OutputDigest;
import ditcast.v1.Generation.Receipt;
import io.grpc.Status;
import java.io.ByteArrayOutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** Outputs of one generation, put together from chunks and checked against the receipt. */
final class OutputAssembly {
    private final Map<Integer, ByteArrayOutputStream> parts = new HashMap<>();

    /** Take one chunk; those of one output come in order. */
    void add(OutputChunk chunk) throws DitcastException {
        if (chunk.getOffset() == 0) {
            parts.put(chunk.getOutputIndex(), new ByteArrayOutputStream());
        }
        ByteArrayOutputStream part = parts.get(chunk.getOutputIndex());
        if (part == null || part.size() != chunk.getOffset()) {
            throw lost(chunk.getOutputIndex(), "has a chunk that does not fit");
        }
        part.writeBytes(chunk.getData().toByteArray());
    }

    /** Forget everything: the generation begins again, and what came is void. */
    void clear() {
        parts.clear();
    }

    /** Give the outputs, each checked against its SHA-256 in the receipt. */
    List<byte[]> finish(Receipt receipt) throws DitcastException {
        List<byte[]> outputs = new ArrayList<>();
        for (OutputDigest digest : receipt.getOutputsList()) {
            outputs.add(check(digest));
        }
        return outputs;
    }

    private byte[] check(OutputDigest digest) throws DitcastException {
        ByteArrayOutputStream part = parts.get(digest.getOutputIndex());
        if (part == null || part.size() != digest.getSizeBytes()) {
            throw lost(digest.getOutputIndex(), "is not whole");
        }
        byte[] data = part.toByteArray();
        if (!Arrays.equals(sha256(data), digest.getSha256().toByteArray())) {
            throw lost(digest.getOutputIndex(), "is not what its receipt says");
        }
        return data;
    }

    private static byte[] sha256(byte[] data) {
        try {
            return MessageDigest.getInstance("SHA-256").digest(data);
        } catch (NoSuchAlgorithmException impossible) {
            throw new AssertionError("every Java has SHA-256", impossible);
        }
    }

    private static DitcastException lost(int index, String how) {
        return new DitcastException(Status.Code.DATA_LOSS, "output " + index + " " + how);
    }
}
