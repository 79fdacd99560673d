package ditcast

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"

	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

// Output is a picture, a video or latents, whole.
type Output struct {
	MediaType string
	Data      []byte
}

// Result is what is left of a generation in the end.
type Result struct {
	Outputs   []Output
	Completed *pb.Completed
}

// Result reads to the end; onEvent, if any, sees each event on the way. Outputs are put together
// from chunks and checked against the receipt.
func (generation *Generation) Result(
	ctx context.Context, onEvent func(*pb.GenerationEvent),
) (*Result, error) {
	parts := map[int32]*Output{}
	for {
		event, err := generation.Next(ctx)
		if err == io.EOF {
			return nil, lost("the stream ended without a result")
		}
		if err != nil {
			return nil, err
		}
		if onEvent != nil {
			onEvent(event)
		}
		switch kind := event.Kind.(type) {
		case *pb.GenerationEvent_OutputChunk:
			if err := add(parts, kind.OutputChunk); err != nil {
				return nil, err
			}
		case *pb.GenerationEvent_Restarted:
			parts = map[int32]*Output{} // What came is void.
		case *pb.GenerationEvent_Completed:
			outputs, err := check(parts, kind.Completed.GetReceipt().GetOutputs())
			return &Result{outputs, kind.Completed}, err
		}
	}
}

func add(parts map[int32]*Output, chunk *pb.OutputChunk) error {
	if chunk.Offset == 0 {
		parts[chunk.OutputIndex] = &Output{MediaType: chunk.MediaType}
	}
	part := parts[chunk.OutputIndex]
	if part == nil || int64(len(part.Data)) != chunk.Offset {
		return lost(fmt.Sprintf("a chunk of output %d does not fit", chunk.OutputIndex))
	}
	part.Data = append(part.Data, chunk.Data...)
	return nil
}

func check(parts map[int32]*Output, digests []*pb.OutputDigest) ([]Output, error) {
	var outputs []Output
	for _, digest := range digests {
		part := parts[digest.OutputIndex]
		if part == nil || int64(len(part.Data)) != digest.SizeBytes {
			return nil, lost(fmt.Sprintf("output %d is not whole", digest.OutputIndex))
		}
		if sum := sha256.Sum256(part.Data); !bytes.Equal(sum[:], digest.Sha256) {
			return nil, lost(fmt.Sprintf("output %d is not what its receipt says", digest.OutputIndex))
		}
		outputs = append(outputs, *part)
	}
	return outputs, nil
}

func lost(message string) *Error {
	return &Error{Code: codes.DataLoss, Message: message}
}
