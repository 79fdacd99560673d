package ditcast

import (
	"crypto/sha256"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"

	pb "github.com/ditcast/ditcast/clients/go/ditcastv1"
)

var picture = []byte("a picture")

// finish puts chunks together and checks them against the receipt of the picture.
func finish(chunks ...*pb.OutputChunk) ([]Output, error) {
	parts := map[int32]*Output{}
	for _, chunk := range chunks {
		if err := add(parts, chunk); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(picture)
	digest := &pb.OutputDigest{SizeBytes: int64(len(picture)), Sha256: sum[:]}
	return check(parts, []*pb.OutputDigest{digest})
}

func TestChunksInTheirOrderMakeTheOutput(t *testing.T) {
	outputs, err := finish(
		&pb.OutputChunk{Data: picture[:4]}, &pb.OutputChunk{Offset: 4, Data: picture[4:]})
	if err != nil || len(outputs) != 1 || string(outputs[0].Data) != string(picture) {
		t.Fatal(outputs, err)
	}
}

func TestWhatIsNotWholeOrNotTheReceiptsIsRefused(t *testing.T) {
	for name, chunks := range map[string][]*pb.OutputChunk{
		"nothing came":   {},
		"other bytes":    {{Data: []byte("a painter")}},
		"the end lacks":  {{Data: picture[:4]}},
		"a gap":          {{Data: picture[:4]}, {Offset: 5, Data: picture[5:]}},
		"no first chunk": {{Offset: 4, Data: picture[4:]}},
	} {
		_, err := finish(chunks...)
		var refused *Error
		if !errors.As(err, &refused) || refused.Code != codes.DataLoss {
			t.Errorf("%s: %v", name, err)
		}
	}
}
